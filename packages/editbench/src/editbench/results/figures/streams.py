"""Streams of edits: metrics against facts written, and what is left of facts by their age."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from editbench.results.figures.panels import (
    Drawing,
    draw_series,
    legend_line,
    make_panels,
    name_panel,
    show_metric_axis,
    title_panel,
)
from editbench.results.figures.selection import Point, Selection, name_series
from editbench.results.figures.style import choose_styles
from editbench.results.labels import MetricLabel
from editbench.results.report import SummaryLine
from editbench.results.statistics import estimate_over_draws
from editbench.results.stream_lines import ChangeLine, RetentionLine

_N_COLUMNS = 4
_BANDS = "Bands: 95 % CI over cases; over orders, where there are several, 90 % (Student's t)."

Line = TypeVar("Line", SummaryLine, RetentionLine, ChangeLine)

_CHANGES = (
    MetricLabel("update_norm", "‖ΔW‖/‖W‖", "Largest update", "", "", higher_is_better=False),
    MetricLabel("key_drift", "‖k − k₀‖/‖k₀‖", "Drift of keys", "", "", higher_is_better=False),
)


def draw_streams(selection: Selection) -> Drawing:
    """Draw every metric against facts written, at each checkpoint over all facts so far."""
    return _draw(
        selection,
        selection.lines,
        x=lambda line: line.checkpoint,
        x_label="facts written",
        title="Streams of edits: metrics against facts written",
    )


def draw_retention(selection: Selection) -> Drawing:
    """Draw every metric at the end of streams against the age of facts."""
    return _draw(
        selection,
        selection.retention,
        x=lambda line: line.age,
        x_label="age (facts written since)",
        title="Retention: metrics at the end against the age of facts",
    )


def draw_changes(selection: Selection) -> Drawing:
    """Draw how large updates are, and how far keys have moved, against facts written."""
    return _draw(
        selection,
        selection.changes,
        x=lambda line: line.checkpoint,
        x_label="facts written",
        title="What streams do to weights and keys",
        labels=_CHANGES,
    )


def _draw(
    selection: Selection,
    lines: Sequence[Line],
    *,
    x: Callable[[Line], float],
    x_label: str,
    title: str,
    labels: Sequence[MetricLabel] = (),
) -> Drawing:
    present = {line.metric for line in lines}
    labels = [label for label in labels or selection.labels if label.metric in present]
    series = name_series(selection.trials, {"seed"})
    names = selection.order(series)
    styles = choose_styles(names)
    sizes = {each.batch_size for each in selection.trials.values() if each.batch_size is not None}
    figure, panels = make_panels(
        max(1, len(labels)),
        n_columns=_N_COLUMNS,
        size=(2.45, 2.3),
        legend={name: legend_line(styles[name]) for name in names},
        title=title,
        caption=selection.describe(
            f"{_BANDS} Dotted: the unedited model on the same cases.",
            how=f", written in batches of {' or '.join(map(str, sorted(sizes)))}.",
        ),
    )
    points: list[Point] = []
    for label, axes in zip(labels, panels, strict=False):
        of_metric = [line for line in lines if line.metric == label.metric]
        drawn = []
        for name in names:
            own = [line for line in of_metric if series[line.trial] == name]
            found = list(_summarize(own, x, name, label))
            if found:
                draw_series(axes, found, styles[name])
            drawn += found
        title_panel(axes, name_panel(label))
        axes.set_xlabel(x_label)
        show_metric_axis(axes, label, (point.value for point in drawn))
        points += drawn
    return Drawing(figure, tuple(points))


def _summarize(
    lines: Iterable[Line], x: Callable[[Line], float], series: str, label: MetricLabel
) -> Iterable[Point]:
    """The points of one line: over its orders, where it has several."""
    places: defaultdict[float, list[Line]] = defaultdict(list)
    for line in lines:
        places[x(line)].append(line)
    for place, found in sorted(places.items()):
        one = found[0]
        if len(found) == 1:
            value, low, high, n = one.value, one.ci_low, one.ci_high, one.n
        else:
            bounds = (0.0, 100.0) if label.is_rate else (None, None)
            over = estimate_over_draws(np.array([each.value for each in found])).clipped(bounds)
            low, high = (None if math.isnan(end) else end for end in (over.low, over.high))
            value, n = over.value, over.n
        yield Point(label.symbol, series, place, label.metric, value, low, high, n)
