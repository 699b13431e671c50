"""Target hidden states z: their optimization, its settings, its cache, its cost."""
