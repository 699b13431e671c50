"""How the scorers of one quality order the editors: likelier, likeliest, said by itself."""

from dataclasses import replace

from editbench.results.figures.panels import (
    Drawing,
    draw_series,
    legend_line,
    make_panels,
    title_panel,
)
from editbench.results.figures.selection import Selection, make_points, name_series
from editbench.results.figures.style import choose_styles

_PANELS = {
    "Score": ("score", "accuracy_score", "generation_score"),
    "Efficacy": ("efficacy_success", "efficacy_accuracy", "efficacy_generation"),
    "Paraphrase": ("paraphrase_success", "paraphrase_accuracy", "paraphrase_generation"),
    "Specificity": ("neighborhood_success", "neighborhood_accuracy", "neighborhood_generation"),
}
_SCORERS = ("likelier\n(probability)", "likeliest\n(argmax)", "said by itself\n(generation)")


def has_scorers(selection: Selection) -> bool:
    """Whether there is what `draw_scorers` compares: generation, and another scorer beside it."""
    present = {line.metric for line in selection.lines}
    return any(
        generation in present and not present.isdisjoint(others)
        for *others, generation in _PANELS.values()
    )


def draw_scorers(selection: Selection) -> Drawing:
    """Draw a panel for each quality, with a line for each editor from scorer to scorer.

    Where lines cross, the scorers order the editors differently.
    """
    series = name_series(selection.trials, ())
    names = selection.order(series)
    styles = choose_styles(names)
    present = {line.metric for line in selection.lines}
    panels_of = {
        title: metrics for title, metrics in _PANELS.items() if not present.isdisjoint(metrics)
    }
    figure, panels = make_panels(
        len(panels_of),
        n_columns=2,
        size=(3.4, 2.4),
        legend={name: legend_line(styles[name]) for name in reversed(names)},
        title="Three scorers of the same questions",
        caption=selection.describe(
            "Bands: 95 % CI over cases. Where lines cross, scorers order the editors differently."
        ),
    )
    points = []
    for (title, metrics), axes in zip(panels_of.items(), panels, strict=True):
        lines = [line for metric in metrics for line in selection.of_metric(metric)]
        place = {metric: float(x) for x, metric in enumerate(metrics)}
        drawn = [
            replace(point, x=place[point.metric]) for point in make_points(lines, title, series)
        ]
        for name in names:
            own = [point for point in drawn if point.series == name]
            if own:
                draw_series(axes, own, styles[name])
        axes.set_xticks(range(len(metrics)), _SCORERS)
        axes.set_xlim(-0.2, len(metrics) - 0.8)
        axes.set_ylim(-4, 104)
        axes.set_ylabel("rate (%) ↑")
        title_panel(axes, title)
        points += drawn
    return Drawing(figure, tuple(points))
