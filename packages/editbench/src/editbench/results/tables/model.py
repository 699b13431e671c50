"""A table, whatever it is going to be written in."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        heading: What stands above it.
        group: What stands above the heading, where there is room; empty for nothing.
        align: Text goes left, numbers go right.
    """

    heading: str
    group: str = ""
    align: Literal["left", "right"] = "left"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell.

    Attributes:
        text: The name or number.
        margin: What stands behind ``±``; empty for nothing.
        remark: What else there is to say, less loudly; empty for nothing.
        bold: Whether the text stands out.
    """

    text: str
    margin: str = ""
    remark: str = ""
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        title: What it shows.
        columns: Its columns.
        sections: Groups of rows, with a rule between them; a row has a cell for each column.
        notes: Sentences that say how to read it.
        warnings: What is wrong or missing.
    """

    title: str
    columns: tuple[Column, ...]
    sections: tuple[tuple[tuple[Cell, ...], ...], ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is no row."""
        return not any(self.sections)


def format_number(value: float, metric: str = "") -> str:
    """One decimal, as in the paper; three significant digits where that would be endless.

    Args:
        value: A number.
        metric: What it is a number of: a perplexity, which moves little, has two decimals, and a
            divergence three.
    """
    decimals = 2 if metric.endswith("perplexity") else 3 if metric.endswith("_divergence") else 1
    return f"{value:.{decimals}f}" if abs(value) < 1e6 else f"{value:.2e}"
