"""Running again only what a change to a hidden state can reach."""
