"""The pictures of a trace folder as files."""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from editbench.tracing.effects import Effects
from editbench.tracing.folder import write_file
from editbench.tracing.manifest import Trace
from editbench.tracing.panels import draw_average, draw_profiles, draw_prompt, draw_severed

_SETTINGS: Mapping[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # a name may hold a dollar sign
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "svg.hashsalt": "editbench",  # ids are the same every time
    "figure.dpi": 100,
    "savefig.dpi": 160,
}


def write_figures(
    folder: Path, trace: Trace, effects: Effects, suggested: Sequence[int], *, n_prompts: int
) -> list[Path]:
    """Draw a trace: the heat maps of its first prompts, and the averages over all of them.

    Args:
        folder: The trace folder; pictures go into ``figures/``, each as PNG and SVG, and the same
            trace gives the same bytes every time.
        trace: The trace.
        effects: Its averages.
        suggested: Critical layers to mark; may be empty.
        n_prompts: How many prompts get a heat map of their own.

    Returns:
        The files.

    Raises:
        TraceError: They cannot be written.
    """
    settings, facts = trace.manifest.settings, trace.manifest.facts
    source = f"model {trace.manifest.model['name']}, facts {facts['source']}"
    drawings: dict[str, Callable[[], Figure]] = {
        f"prompt-{number:05d}": partial(draw_prompt, one, settings.window, settings.n_samples)
        for number, one in enumerate(trace.prompts[:n_prompts])
    }
    drawings["average"] = lambda: draw_average(effects, settings.window, source)
    drawings["profiles"] = lambda: draw_profiles(effects, settings.window, source)
    if settings.severed:
        drawings["severed"] = lambda: draw_severed(effects, source, suggested)
    written = []
    for name, draw in drawings.items():
        with _own_settings():
            figure = draw()
            FigureCanvasAgg(figure)
            contents = {
                ".png": _render(figure, "png", {"Software": None}),
                ".svg": _render(figure, "svg", {"Date": None, "Creator": "editbench"}),
            }
        for suffix, content in contents.items():
            path = folder / "figures" / f"{name}{suffix}"
            write_file(path, content)
            written.append(path)
    return written


def _render(figure: Figure, image_format: str, metadata: dict[str, str | None]) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format=image_format, metadata=metadata)
    return image.getvalue()


@contextmanager
def _own_settings() -> Iterator[None]:
    """Draw with these settings alone, whatever the user's own are, and leave theirs untouched."""
    with mpl.rc_context(), warnings.catch_warnings():
        # A token in a script that the font lacks is drawn as boxes; in the SVG it is still text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield
