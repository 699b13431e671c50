"""Figure 13: metrics against λ, the weight of what is to be preserved."""

from editbench.results.figures.panels import Drawing
from editbench.results.figures.selection import Selection, name_series
from editbench.results.figures.sweep import draw_sweep

FIELD = "config.preservation_weight"


def draw_preservation_weight(selection: Selection) -> Drawing:
    """Draw one line for each number of edits; the unedited model is a dotted level."""
    weights = {
        trial: float(description.config["preservation_weight"])
        for trial, description in selection.trials.items()
        if "preservation_weight" in description.config
    }
    return draw_sweep(
        selection,
        series=name_series(selection.trials, {FIELD}),
        x=lambda line: weights.get(line.trial),
        x_label="λ (weight of C)",
        title="Metrics against λ",
        caption=selection.describe(
            f"n = {selection.n_edits} edits at once, {selection.measured_on}.",
            "Bands: 95 % CI over cases. Dotted: the unedited model.",
        ),
    )
