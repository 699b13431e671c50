"""Causal tracing: which layers, at which tokens, mediate what a model recalls (App. A)."""
