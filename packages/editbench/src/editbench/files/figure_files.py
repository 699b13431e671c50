"""Figures as files: the same figure gives the same bytes, whatever the user's settings are."""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_SETTINGS: Mapping[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # a name may hold a dollar sign
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "svg.hashsalt": "editbench",  # ids are the same every time
    "figure.dpi": 100,
    "savefig.dpi": 160,
}


@contextmanager
def figure_settings(own: Mapping[Any, Any]) -> Iterator[None]:
    """Draw with these settings alone, whatever the user's are, and leave theirs untouched."""
    with mpl.rc_context(), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; in the SVG it is still text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        mpl.rcdefaults()
        mpl.rcParams.update({**_SETTINGS, **own})
        yield


def render(figure: Figure) -> dict[str, bytes]:
    """A figure as PNG and SVG, by the ending of a file's name."""
    FigureCanvasAgg(figure)
    files = {}
    for ending, metadata in (
        (".png", {"Software": None}),
        (".svg", {"Date": None, "Creator": "editbench"}),
    ):
        image = io.BytesIO()
        figure.savefig(image, format=ending[1:], metadata=metadata)
        files[ending] = image.getvalue()
    return files
