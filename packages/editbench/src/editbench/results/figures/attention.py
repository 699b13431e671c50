"""Figure 12: writing into attention instead of MLPs."""

from editbench.results.figures.panels import Drawing
from editbench.results.figures.selection import Selection, name_series
from editbench.results.figures.sweep import draw_sweep

FIELD = "config.module"


def draw_attention(selection: Selection) -> Drawing:
    """Draw one line for each kind of module that is written into."""
    modules = {
        trial: description.config["module"]
        for trial, description in selection.trials.items()
        if "module" in description.config
    }
    series = name_series(selection.trials, {"n_edits", FIELD, "config.critical_layers"})
    return draw_sweep(
        selection,
        series={
            trial: f"{name}, {modules[trial]}" if trial in modules else name
            for trial, name in series.items()
        },
        x=lambda line: line.n_edits,
        x_label="n (edits)",
        title="Writing into attention or into MLPs",
        caption=selection.describe(
            f"n = {selection.n_edits} edits at once, {selection.measured_on}.",
            "Bands: 95 % CI over cases. Dotted: the unedited model on the same cases.",
        ),
    )
