"""Results as figures, one file for each of the paper's; matplotlib is imported only here."""

from editbench.results.figures.drawing import draw_figures

__all__ = ["draw_figures"]
