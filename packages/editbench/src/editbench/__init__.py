"""Run any model editor on any model and dataset, and measure what it did."""

__version__ = "0.1.0"
