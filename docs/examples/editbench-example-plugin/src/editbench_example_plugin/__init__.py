"""An example of a plugin for editbench: editors ``gradient-step`` and ``clipped``, metric ``margin``."""
