"""Which number stands where in a panel: for those who show numbers on hover."""

from collections.abc import Iterator, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes

from editbench.results.figures.selection import Point


class Marks(Artist):
    """Remembers places of numbers in a panel, and draws nothing."""

    def __init__(
        self, x: Sequence[float | None], y: Sequence[float | None], points: Sequence[Point]
    ) -> None:
        super().__init__()
        self.set_in_layout(False)
        self.places = tuple(zip(x, y, points, strict=True))


def mark_points(
    axes: Axes,
    x: Sequence[float | None],
    y: Sequence[float | None],
    points: Sequence[Point],
) -> None:
    """Say where numbers are drawn.

    Args:
        axes: The panel.
        x: Horizontal places in data coordinates; None for a line across, marked at its right end.
        y: Vertical places; None for a line upwards, marked at its top.
        points: The numbers.
    """
    axes.add_artist(Marks(x, y, points))


def find_marks(axes: Axes) -> Iterator[tuple[float, float, Point]]:
    """The numbers of a panel with their places in display coordinates."""
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    for artist in axes.get_children():
        if isinstance(artist, Marks):
            for x, y, point in artist.places:
                place = (right if x is None else x, top if y is None else y)
                across, up = axes.transData.transform(place)
                yield float(across), float(up), point
