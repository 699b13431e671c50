"""An example of a plugin for editbench: two editors, and the metric ``margin``."""
