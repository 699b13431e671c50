"""Figure 6: relation by relation."""

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from editbench.results.figures.panels import (
    Drawing,
    legend_marker,
    make_panels,
    mark_points,
    reach,
)
from editbench.results.figures.selection import Point, Selection, make_points, name_series
from editbench.results.figures.style import BLACK, UNEDITED_STYLE, SeriesStyle, choose_styles
from editbench.results.labels import UNEDITED, choose_score

_SPECIFICITY = ("neighborhood_success", "neighborhood_accuracy")
_GENERALIZATION = ("paraphrase_success", "paraphrase_accuracy")
_BAR = 0.17  # inches
_NAME_CHARACTERS = 26


def draw_categories(selection: Selection) -> Drawing:
    """Draw the score of each relation as bars, and specificity against generalization as points.

    Relations stand in the order of the last editor's score, the best on top; the last editor is
    MEMIT where there is one.
    """
    series = name_series(selection.trials, {"relations"})
    names = selection.order(series)
    edited = [name for name in names if name != UNEDITED]
    styles = choose_styles(names)
    score = selection.label(choose_score(label.metric for label in selection.labels) or "score")
    bars = make_points(
        selection.of_metric(score.metric),
        f"{score.symbol} by relation",
        series,
        lambda line: line.relations or "all",
    )
    relations = _order(bars, edited)
    figure, (left, right) = make_panels(
        2,
        n_columns=2,
        size=(4.4, max(3.4, 1.0 + _BAR * (len(edited) + 1) * len(relations))),
        legend=_legend(edited, styles, with_unedited=UNEDITED in names),
        title="Editing relation by relation",
        caption=selection.describe(
            "Bars and crosses: 95 % CI over cases. Right: one point for each relation.",
            how=f" at once of each relation, {selection.measured_on}.",
        ),
    )
    _draw_bars(left, bars, relations, edited, styles)
    left.set_xlabel(f"{score.axis} ↑")
    left.set_title(f"{score.symbol} by relation", loc="left")
    points = [*bars, *_draw_scatter(right, selection, series, edited, styles)]
    return Drawing(figure, tuple(points))


def _order(bars: Sequence[Point], edited: Sequence[str]) -> list[str]:
    """Relations from the bottom of the axis to its top."""
    relations = list(dict.fromkeys(str(bar.x) for bar in bars))
    main = edited[0] if edited else UNEDITED  # the paper's last editor is drawn first
    scores = {str(bar.x): bar.value for bar in bars if bar.series == main}
    return sorted(relations, key=lambda relation: (scores.get(relation, -1.0), relation))


def _legend(
    edited: Sequence[str], styles: Mapping[str, SeriesStyle], *, with_unedited: bool
) -> dict[str, Artist | tuple[Artist, ...]]:
    """What is a bar on the left is a point on the right."""
    legend: dict[str, Artist | tuple[Artist, ...]] = {}
    for name in edited:
        style = styles[name]
        bar = Patch(facecolor=style.color, edgecolor="white", hatch=style.hatch)
        legend[name] = (bar, legend_marker(style))
    if with_unedited:
        stroke = legend_marker(SeriesStyle(BLACK, "|", "", ""))
        legend[UNEDITED] = (stroke, legend_marker(UNEDITED_STYLE, hollow=True))
    return legend


def _draw_bars(
    axes: Axes,
    bars: Sequence[Point],
    relations: Sequence[str],
    edited: Sequence[str],
    styles: Mapping[str, SeriesStyle],
) -> None:
    thickness = 0.82 / max(1, len(edited))
    for index, name in enumerate(edited):
        own = [bar for bar in bars if bar.series == name]
        values = [bar.value for bar in own]
        # The first editor on top, as in the legend.
        shift = 0.41 - thickness * (index + 0.5)
        rows = [relations.index(str(bar.x)) + shift for bar in own]
        mark_points(axes, values, rows, own)
        axes.barh(
            rows,
            values,
            height=thickness,
            color=styles[name].color,
            edgecolor="white",
            linewidth=0.5,
            hatch=styles[name].hatch,
            xerr=reach(own),
            error_kw={"elinewidth": 0.9, "capsize": 1.5, "ecolor": "#333333"},
        )
    for bar in (bar for bar in bars if bar.series == UNEDITED):
        place = relations.index(str(bar.x))
        mark_points(axes, [bar.value], [place], [bar])
        axes.vlines(bar.value, place - 0.43, place + 0.43, color="black", linewidth=1.6)
    names = [textwrap.fill(relation, _NAME_CHARACTERS) for relation in relations]
    axes.set_yticks(range(len(relations)), names)
    axes.set_ylim(-0.6, len(relations) - 0.4)
    axes.set_xlim(0, 104)
    axes.grid(visible=False, axis="y")


def _draw_scatter(
    axes: Axes,
    selection: Selection,
    series: Mapping[str, str],
    edited: Sequence[str],
    styles: Mapping[str, SeriesStyle],
) -> list[Point]:
    present = {label.metric for label in selection.labels}
    pairs = zip(_GENERALIZATION, _SPECIFICITY, strict=True)
    chosen = next((pair for pair in pairs if present.issuperset(pair)), None)
    if chosen is None:
        axes.remove()
        return []
    across, up = (selection.label(metric) for metric in chosen)
    panel = f"{up.symbol} against {across.symbol}"
    found: dict[str, dict[str, Point]] = {}
    for label in (across, up):
        lines = selection.of_metric(label.metric)
        made = make_points(lines, panel, series, lambda line: line.relations or "all")
        found[label.metric] = {line.trial: p for line, p in zip(lines, made, strict=True)}
    trials = [trial for trial in found[across.metric] if trial in found[up.metric]]
    for name in [UNEDITED, *reversed(edited)]:
        own = [trial for trial in trials if series[trial] == name]
        if not own:
            continue
        x, y = ([found[label.metric][trial] for trial in own] for label in (across, up))
        x_values, y_values = ([point.value for point in each] for each in (x, y))
        style = UNEDITED_STYLE if name == UNEDITED else styles[name]
        for numbers in (x, y):
            mark_points(axes, x_values, y_values, numbers)
        axes.errorbar(
            x_values,
            y_values,
            xerr=reach(x),
            yerr=reach(y),
            color=style.color,
            ecolor=f"{style.color}55",
            marker=style.marker or "o",
            markerfacecolor="white" if name == UNEDITED else style.color,
            linestyle="none",
            elinewidth=0.9,
        )
    axes.set_xlim(-4, 104)
    axes.set_ylim(-4, 104)
    axes.set_xlabel(f"generalization: {across.axis} ↑")
    axes.set_ylabel(f"specificity: {up.axis} ↑")
    axes.set_title("Specificity against generalization", loc="left")
    return [found[label.metric][trial] for label in (across, up) for trial in trials]
