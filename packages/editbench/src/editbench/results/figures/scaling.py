"""Figure 5: every metric against the number of edits."""

from editbench.results.figures.panels import Drawing
from editbench.results.figures.selection import Selection, name_series
from editbench.results.figures.sweep import draw_sweep


def draw_scaling(selection: Selection) -> Drawing:
    """Draw one line for each editor, and the unedited model on the same cases as a dotted one."""
    return draw_sweep(
        selection,
        series=name_series(selection.trials, {"n_edits"}),
        x=lambda line: line.n_edits,
        x_label="n (edits)",
        title="Scaling: metrics against the number of edits",
        caption=selection.describe(
            f"n = {selection.n_edits} edits at once, {selection.measured_on}.",
            "Bands: 95 % CI over cases. Dotted: the unedited model on the same cases.",
        ),
    )
