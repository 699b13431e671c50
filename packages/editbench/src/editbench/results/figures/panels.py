"""What all figures are put together from: panels, axes, lines with their intervals, a legend."""

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from editbench.results.figures.selection import Point
from editbench.results.figures.style import UNEDITED_STYLE, SeriesStyle
from editbench.results.labels import MetricLabel

_CHARACTERS_PER_INCH = 15
_LEGEND_CHARACTERS = 26
_INCHES_PER_LEGEND_LINE = 0.19
_MOST_TICKS = 6
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_WIDE = 30  # from this ratio of largest to smallest on, an unbounded metric gets a log axis


@dataclass(frozen=True)
class Drawing:
    """A figure and the numbers in it."""

    figure: Figure
    points: tuple[Point, ...]


def make_panels(
    n_panels: int,
    *,
    n_columns: int,
    size: tuple[float, float],
    legend: Mapping[str, Artist | tuple[Artist, ...]],
    title: str,
    caption: str,
    share_y: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure with empty panels, the title above, the legend to the right, the caption below.

    Args:
        n_panels: How many panels.
        n_columns: How many of them stand in a row, at most.
        size: Width and height of a panel with its labels, in inches.
        legend: Labels and what they explain; several things may share a label.
        title: What the figure shows.
        caption: n, what the intervals are, and where the numbers are from.
        share_y: Whether panels of a row share their vertical axis.
    """
    n_columns = min(n_columns, n_panels)
    n_rows = math.ceil(n_panels / n_columns)
    width = max(n_columns * size[0] + (1.9 if legend else 0.0), 5.0)
    caption_lines = textwrap.wrap(caption, int(width * _CHARACTERS_PER_INCH))
    below = 0.16 * len(caption_lines)
    labels = [textwrap.fill(label, _LEGEND_CHARACTERS) for label in legend]
    n_legend_lines = sum(label.count("\n") + 1 for label in labels)
    height = max(n_rows * size[1] + 0.45, n_legend_lines * _INCHES_PER_LEGEND_LINE) + below
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey="row" if share_y else False)
    axes = list(grid.ravel())
    for unused in axes[n_panels:]:
        unused.remove()
    wrapped = textwrap.fill(title, int(width * 10))
    figure.suptitle(wrapped, x=0.01, horizontalalignment="left", fontsize=11, fontweight="bold")
    figure.supxlabel(
        "\n".join(caption_lines), x=0.01, horizontalalignment="left", fontsize=8, color="#333333"
    )
    if legend:
        handles: list[Any] = list(legend.values())  # matplotlib's types know no tuples here
        figure.legend(
            handles,
            labels,
            loc="outside right upper",
            handler_map={tuple: HandlerTuple(ndivide=None)},
        )
    return figure, axes[:n_panels]


def title_panel(axes: Axes, title: str, width: int = 30) -> None:
    """Put a panel's title above it, to the left, its lines broken to `width` characters."""
    lines = [part for line in title.split("\n") for part in textwrap.wrap(line, width)]
    axes.set_title("\n".join(lines), loc="left")


def legend_line(style: SeriesStyle) -> Line2D:
    """What stands for a line in a legend."""
    return Line2D([], [], color=style.color, marker=style.marker or "none", linestyle=style.line)


def legend_marker(style: SeriesStyle, *, hollow: bool = False) -> Line2D:
    """What stands for points without a line in a legend."""
    return Line2D(
        [],
        [],
        color=style.color,
        marker=style.marker or "o",
        linestyle="none",
        markerfacecolor="white" if hollow else style.color,
    )


def draw_series(
    axes: Axes,
    points: Sequence[Point],
    style: SeriesStyle,
    *,
    place: Callable[[Point], float] = lambda point: float(point.x),
) -> None:
    """Draw a line over numbers with its band; a point that is alone gets an error bar.

    A number stands at its own x, unless `place` says where.
    """
    ordered = sorted(points, key=place)
    x = [place(point) for point in ordered]
    y = [point.value for point in ordered]
    low, high = interval(ordered)
    marker = style.marker or None
    if len(ordered) == 1 and style is not UNEDITED_STYLE:
        draw_error_bars(axes, x, ordered, style)
    elif len(ordered) == 1:
        draw_level(axes, ordered[0], style)
    else:
        mark_points(axes, x, y, ordered)
        axes.plot(x, y, color=style.color, marker=marker, linestyle=style.line)
        faint = 0.08 if style is UNEDITED_STYLE else 0.15
        axes.fill_between(x, low, high, color=style.color, alpha=faint, linewidth=0)


def draw_level(axes: Axes, point: Point, style: SeriesStyle, *, width: float = 1.6) -> None:
    """Draw a number as a line across the panel."""
    mark_points(axes, [None], [point.value], [point])
    axes.axhline(point.value, color=style.color, linestyle=style.line, linewidth=width)


def draw_error_bars(
    axes: Axes, x: Sequence[float], points: Sequence[Point], style: SeriesStyle
) -> None:
    """Draw numbers as points with their intervals."""
    y = [point.value for point in points]
    mark_points(axes, x, y, points)
    axes.errorbar(
        x,
        y,
        yerr=reach(points),
        color=style.color,
        marker=style.marker or "o",
        linestyle="none",
        capsize=2.5,
        elinewidth=1,
    )


def interval(points: Iterable[Point]) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the points' intervals; the number itself where there is none."""
    low = [point.value if point.ci_low is None else point.ci_low for point in points]
    high = [point.value if point.ci_high is None else point.ci_high for point in points]
    return np.array(low), np.array(high)


def reach(points: Sequence[Point]) -> np.ndarray:
    """How far the points' intervals reach down and up from the numbers, ``[2, n_points]``."""
    low, high = interval(points)
    values = np.array([point.value for point in points])
    return np.stack([values - low, high - values])


def show_log_axis(axes: Axes, values: Iterable[float], label: str) -> None:
    """Make the horizontal axis logarithmic, with plain numbers at its ticks."""
    distinct = sorted(set(values))
    axes.set_xscale("log")
    if distinct:
        # Half a decade around a single number, else a little room at both ends.
        room = (distinct[-1] / distinct[0]) ** 0.04 if len(distinct) > 1 else 3.0
        axes.set_xlim(distinct[0] / room, distinct[-1] * room)
    if 0 < len(distinct) <= _MOST_TICKS and _are_apart(distinct):
        axes.xaxis.set_major_locator(FixedLocator(distinct))
    else:
        axes.xaxis.set_major_locator(LogLocator(numticks=_MOST_TICKS))
    show_plain_numbers(axes.xaxis)
    axes.set_xlabel(label)


def show_plain_numbers(axis: Axis) -> None:
    """Label a log axis with plain numbers, and with powers of ten where they would be long."""
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: write_number(value)))


def write_number(value: float) -> str:
    """A number for an axis: ``1,000``, ``0.05``, ``10⁻⁵``, ``3·10⁶``."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.6g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    power = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return power if float(mantissa) == 1 else f"{float(mantissa):g}·{power}"


def show_metric_axis(axes: Axes, label: MetricLabel, values: Iterable[float]) -> None:
    """Make the vertical axis that of a metric: rates from 0 to 100, others as they come."""
    if label.is_rate:
        axes.set_ylim(-4, 104)
    elif is_wide(values):
        axes.set_yscale("log")
        show_plain_numbers(axes.yaxis)
    axes.set_ylabel(label.axis_heading)


def is_wide(values: Iterable[float]) -> bool:
    """Whether numbers differ so much that only a log axis shows them all."""
    found = list(values)
    return bool(found) and min(found) > 0 and max(found) / min(found) > _WIDE


def name_panel(label: MetricLabel) -> str:
    """The title of a metric's panel."""
    return label.quantity or label.symbol.replace("_", " ")


def _are_apart(values: Sequence[float]) -> bool:
    """Whether labels at all of `values` would have room on a log axis."""
    span = math.log(values[-1] / values[0]) or 1.0
    gaps = [math.log(b / a) / span for a, b in pairwise(values)]
    return all(gap > 0.14 for gap in gaps)


class Marks(Artist):
    """Remembers places of numbers in a panel, to show them on hover, and draws nothing."""

    def __init__(
        self, x: Sequence[float | None], y: Sequence[float | None], points: Sequence[Point]
    ) -> None:
        super().__init__()
        self.set_in_layout(False)
        self.places = tuple(zip(x, y, points, strict=True))


def mark_points(
    axes: Axes,
    x: Sequence[float | None],
    y: Sequence[float | None],
    points: Sequence[Point],
) -> None:
    """Say where numbers are drawn, in data coordinates.

    None as `x` is a line across, marked at its right end; as `y` one upwards, marked at its top.
    """
    axes.add_artist(Marks(x, y, points))


def find_marks(axes: Axes) -> Iterator[tuple[float, float, Point]]:
    """The numbers of a panel with their places in display coordinates."""
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    for artist in axes.get_children():
        if isinstance(artist, Marks):
            for x, y, point in artist.places:
                place = (right if x is None else x, top if y is None else y)
                across, up = axes.transData.transform(place)
                yield float(across), float(up), point
