"""Results as figures, each of the paper's; matplotlib is imported on demand."""

from editbench.results.figures.drawing import draw_figures

__all__ = ["draw_figures"]
