"""The pieces that editors share: where, what and how to write."""
