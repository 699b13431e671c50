"""Batches that grow row by row until they are full, whatever full means."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, Self, TypeVar

Row = TypeVar("Row")
Row_contra = TypeVar("Row_contra", contravariant=True)


class Extent(Protocol[Row_contra]):
    """How large a batch is, as far as that can be told from one row after the other."""

    def grown(self, row: Row_contra, /) -> Self:
        """The extent with one row more."""


ExtentOf = TypeVar("ExtentOf", bound=Extent)  # type: ignore[type-arg]


def grow_batches(
    rows: Iterable[Row], empty: ExtentOf, is_full: Callable[[ExtentOf], bool]
) -> Iterator[list[Row]]:
    """Divide rows into batches, in their order.

    Args:
        rows: The rows.
        empty: The extent of a batch without rows.
        is_full: Whether an extent is more than a batch may have; a row that is so by itself is a
            batch of its own.
    """
    batch: list[Row] = []
    extent = empty
    for row in rows:
        grown = extent.grown(row)
        if batch and is_full(grown):
            yield batch
            batch, grown = [], empty.grown(row)
        batch.append(row)
        extent = grown
    if batch:
        yield batch
