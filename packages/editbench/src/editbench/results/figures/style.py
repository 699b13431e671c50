"""How figures look: in colors that everyone can tell apart, and legible without any."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from editbench.results.labels import UNEDITED

# Okabe and Ito's palette; its yellow is too faint for lines on white.
BLACK, GREY = "#000000", "#7f7f7f"
BLUE, VERMILION, GREEN, ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
PURPLE, SKY_BLUE = "#cc79a7", "#56b4e9"
BROWN = "#5a3d1e"  # none of theirs, and darker than their reds

SETTINGS: Mapping[Any, Any] = {
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "legend.handlelength": 3.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}
"""Of matplotlib, besides those of all figures."""


@dataclass(frozen=True, slots=True)
class SeriesStyle:
    """What a series is drawn with; of nine series any one of the four is enough to know it by."""

    color: str
    marker: str
    line: Literal["-", "--", "-.", ":", ""] | tuple[float, tuple[float, ...]]
    hatch: str


UNEDITED_STYLE = SeriesStyle(BLACK, "", ":", "")

_OF_EDITOR = {
    "memit": SeriesStyle(BLUE, "o", "-", ""),
    "rome": SeriesStyle(VERMILION, "s", "--", "////"),
    "mend": SeriesStyle(GREEN, "^", "-.", "...."),
    "ft-w": SeriesStyle(ORANGE, "D", (0, (6, 1, 1, 1, 1, 1)), "\\\\\\\\"),
    UNEDITED: UNEDITED_STYLE,
}
# Black and dots are the unedited model's alone.
_COLORS = (PURPLE, SKY_BLUE, BROWN, GREY, BLUE, VERMILION, GREEN, ORANGE)
_MARKERS = ("P", "v", "X", "*", "<", ">", "p", "h", "d", "H", "8", "1")
_LINES: tuple[tuple[float, tuple[float, ...]], ...] = (
    (0, (8, 2)), (0, (3, 1)), (0, (12, 4)), (0, (10, 2, 2, 2)), (0, (5, 3, 1, 3)),
)  # fmt: skip
_HATCHES = ("xxxx", "----", "++++", "||||", "oo", "OO", "**")
_OTHERS = tuple(
    SeriesStyle(
        _COLORS[i % len(_COLORS)],
        _MARKERS[i % len(_MARKERS)],
        _LINES[i % len(_LINES)],
        _HATCHES[i % len(_HATCHES)],
    )
    for i in range(math.lcm(len(_COLORS), len(_MARKERS)))
)


def choose_styles(series: Iterable[str]) -> dict[str, SeriesStyle]:
    """A style for each series: the paper's editors keep theirs, and no two are alike.

    The first nine differ in color and line, too; all of some thirty in color and marker together.
    Beyond that the styles begin again.
    """
    names = list(dict.fromkeys(series))
    styles = {name: _OF_EDITOR[name] for name in names if name in _OF_EDITOR}
    taken = {styles[name].color + styles[name].marker for name in styles}
    free = [
        style
        for style in (*_OF_EDITOR.values(), *_OTHERS)
        if style.marker and style.color + style.marker not in taken
    ] or list(_OTHERS)
    unknown = [name for name in names if name not in styles]
    return styles | {name: free[i % len(free)] for i, name in enumerate(unknown)}
