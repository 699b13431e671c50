"""A heat map, whatever it is of."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Numbers by row and column.

    Attributes:
        title: What it shows.
        row_heading: What the rows are.
        rows: Their labels, from top to bottom.
        column_heading: What the columns are.
        columns: Their labels, from left to right.
        values: `[n_rows][n_columns]`; None where there is no number.
        unit: What the values are, such as ``probability``.
    """

    title: str
    row_heading: str
    rows: tuple[str, ...]
    column_heading: str
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    unit: str

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and largest value; zeros if there is none."""
        found = [value for row in self.values for value in row if value is not None]
        return (min(found), max(found)) if found else (0.0, 0.0)

    def shade(self, value: float) -> float:
        """How dark a value is shown: 0 for the smallest, 1 for the largest."""
        low, high = self.bounds
        return (value - low) / (high - low) if high > low else 0.0


@dataclass(frozen=True, slots=True)
class HeatMapGroup:
    """Heat maps that are read together.

    Attributes:
        title: What they are about.
        caption: How to read them.
        maps: The heat maps.
        is_open: Whether they are seen at once, or when somebody asks for them.
    """

    title: str
    caption: str
    maps: tuple[HeatMap, ...]
    is_open: bool
