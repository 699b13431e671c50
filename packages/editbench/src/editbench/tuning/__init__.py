"""Hyperparameters of an editor for a model, searched for on validation facts."""
