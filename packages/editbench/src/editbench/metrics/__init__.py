"""Metrics: pure functions from a model's answers to numbers."""
