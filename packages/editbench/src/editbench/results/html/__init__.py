"""The HTML report: one page that holds everything, and asks nobody for anything."""

from editbench.results.html.heat_map import HeatMap, HeatMapGroup
from editbench.results.html.page import Page, build_page

__all__ = ["HeatMap", "HeatMapGroup", "Page", "build_page"]
