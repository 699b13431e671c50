"""Edits as values: what an editor computed, kept apart from the model it was computed for."""
