"""An example of a plugin for editbench: the editor ``gradient-step`` and the metric ``margin``."""
