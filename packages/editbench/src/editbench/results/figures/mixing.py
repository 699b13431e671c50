"""Figures 7 and 10: facts of two relations in one batch, against each of them alone."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from editbench.results.figures.panels import (
    Drawing,
    draw_series,
    interval,
    legend_line,
    make_panels,
    show_log_axis,
    show_metric_axis,
    title_panel,
)
from editbench.results.figures.selection import Point, Selection, describe_range, name_series
from editbench.results.figures.style import BLACK, BLUE, GREEN, VERMILION, SeriesStyle
from editbench.results.labels import UNEDITED, MetricLabel, choose_score
from editbench.results.statistics import estimate_over_draws

_STYLES = {
    "a alone": SeriesStyle(BLUE, "o", "-.", ""),
    "b alone": SeriesStyle(GREEN, "^", (0, (6, 1, 1, 1, 1, 1)), ""),
    "a and b mixed": SeriesStyle(VERMILION, "s", "-", ""),
    "mean of a and b alone": SeriesStyle(BLACK, "x", "--", ""),
}
_LEAST_RANGE = 10.0
Draws = dict[int, dict[int, float]]
"""Number of edits to seed to value."""


def draw_mixing(selection: Selection) -> Drawing:
    """Draw a panel for each editor and pair of relations: the score against n, over draws.

    Values are means over draws, which are trials with different seeds, with Student's 90 %
    interval. The mean of the two relations alone is taken draw by draw.
    """
    score = selection.label(choose_score(label.metric for label in selection.labels) or "score")
    series = name_series(selection.trials, {"relations", "n_edits", "seed"})
    draws: defaultdict[tuple[str, tuple[str, ...]], Draws] = defaultdict(lambda: defaultdict(dict))
    for line in selection.of_metric(score.metric):
        if line.editor != UNEDITED:
            relations = selection.trials[line.trial].relations
            draws[series[line.trial], relations][line.n_edits][line.seed] = line.value
    pairs = list(
        dict.fromkeys(
            (series[trial], description.relations)
            for trial, description in selection.trials.items()
            if description.editor != UNEDITED and len(description.relations) == 2
        )
    )
    planned: defaultdict[tuple[str, tuple[str, ...]], set[int]] = defaultdict(set)
    for trial, description in selection.trials.items():
        planned[series[trial], description.relations].add(description.n_edits)
    seeds = {line.seed for line in selection.lines}
    figure, panels = make_panels(
        max(1, len(pairs)),
        n_columns=2,
        size=(3.6, 2.9),
        legend={name: legend_line(style) for name, style in _STYLES.items()},
        title="Mixing relations",
        caption=selection.describe(
            "Bands: 90 % CI over draws (Student's t).",
            how=" at once, half of each relation where they are mixed; "
            f"{describe_range([len(seeds)])} draws of the facts.",
        ),
    )
    several_editors = len({editor for editor, _ in pairs}) > 1
    points: list[Point] = []
    for (editor, pair), axes in zip(pairs, panels, strict=True):
        title = f"a: {pair[0]}\nb: {pair[1]}" + (f"\n{editor}" if several_editors else "")
        sizes = planned[editor, pair]
        alone = [_at(draws[editor, (relation,)], sizes) for relation in pair]
        curves = [*alone, draws[editor, pair], _average(*alone)]
        drawn = []
        for name, curve in zip(_STYLES, curves, strict=True):
            own = [
                _summarize(title.replace("\n", ", "), name, n, list(by_seed.values()), score)
                for n, by_seed in sorted(curve.items())
                if by_seed
            ]
            if own:
                draw_series(axes, own, _STYLES[name])
            drawn += own
        title_panel(axes, title, width=38)
        show_log_axis(axes, (float(point.x) for point in drawn), "n (edits)")
        show_metric_axis(axes, score, (point.value for point in drawn))
        points += drawn
    if score.is_rate and points:
        _zoom_in(panels, points)
    return Drawing(figure, tuple(points))


def _zoom_in(panels: Sequence[Axes], points: Sequence[Point]) -> None:
    """Show all panels in the same range, that of their bands: the curves are close together."""
    low, high = interval(points)
    bottom, top = max(0.0, float(low.min())), min(100.0, float(high.max()))
    room = 0.05 * max(top - bottom, _LEAST_RANGE)
    for axes in panels:
        axes.set_ylim(bottom - room, min(top + room, 100 + room / 2))


def _at(draws: Draws, sizes: set[int]) -> Draws:
    """The draws of some sizes: a relation alone may have others too, which other pairs ask for."""
    return {n: by_seed for n, by_seed in draws.items() if n in sizes}


def _average(one: Draws, other: Draws) -> Draws:
    """Draw by draw the mean of two curves, where both have a value."""
    return {
        n: {seed: (one[n][seed] + other[n][seed]) / 2 for seed in one[n].keys() & other[n].keys()}
        for n in one.keys() & other.keys()
    }


def _summarize(
    panel: str, series: str, n: int, values: Sequence[float], score: MetricLabel
) -> Point:
    bounds = (0.0, 100.0) if score.is_rate else (None, None)
    estimate = estimate_over_draws(np.array(values)).clipped(bounds)
    low, high = (None if math.isnan(end) else end for end in (estimate.low, estimate.high))
    return Point(panel, series, n, score.metric, estimate.value, low, high, estimate.n)
