"""A suite of checks that a model passes or fails."""
