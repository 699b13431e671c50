"""Which rows run together: batches that grow row by row until they are full, whatever full means.

Running and estimating both walk the batches that are cut here: a batch knows its extent, which is
what prices are made of.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Final, Generic, Protocol, Self, TypeVar

Row = TypeVar("Row")
Row_contra = TypeVar("Row_contra", contravariant=True)


class Extent(Protocol[Row_contra]):
    """How large a batch is, as far as that can be told from one row after the other."""

    def grown(self, row: Row_contra, /) -> Self:
        """The extent with one row more."""


ExtentOf = TypeVar("ExtentOf", bound=Extent)  # type: ignore[type-arg]


@dataclass(frozen=True, slots=True)
class Batch(Generic[Row, ExtentOf]):
    """Rows that run together, and how large they are together."""

    rows: list[Row]
    extent: ExtentOf


def batches(
    rows: Iterable[Row], extent: ExtentOf, is_full: Callable[[ExtentOf], bool]
) -> Iterator[Batch[Row, ExtentOf]]:
    """Divide rows into batches, in their order.

    Args:
        rows: The rows.
        extent: That of a batch without rows.
        is_full: Whether an extent is more than a batch may have; a row that is so by itself is a
            batch of its own.
    """
    empty = extent
    batch: list[Row] = []
    for row in rows:
        grown = extent.grown(row)
        if batch and is_full(grown):
            yield Batch(batch, extent)
            batch, grown = [], empty.grown(row)
        batch.append(row)
        extent = grown
    if batch:
        yield Batch(batch, extent)


@dataclass(frozen=True, slots=True)
class Padded:
    """The extent of rows of tokens that are padded to the longest.

    Attributes:
        n_rows: Rows.
        width: Tokens of the longest.
        n_tokens: Their own tokens, padding left out.
    """

    n_rows: int = 0
    width: int = 0
    n_tokens: int = 0

    @classmethod
    def of(cls, rows: Iterable[Sized]) -> Self:
        """The extent of some rows."""
        lengths = [len(row) for row in rows]
        return cls(len(lengths), max(lengths, default=0), sum(lengths))

    def grown(self, row: Sized) -> Self:
        """The extent with one row more."""
        length = len(row)
        return type(self)(self.n_rows + 1, max(self.width, length), self.n_tokens + length)

    @classmethod
    def full(cls, n_rows: int, width: int) -> Self:
        """Rows of one length."""
        return cls(n_rows, width, n_rows * width)

    @property
    def n_padded(self) -> int:
        """Tokens, padding included."""
        return self.n_rows * self.width


NO_ROWS: Final = Padded()


def batches_of_like_length(
    rows: Sequence[Sized], token_budget: int, is_loose: Callable[[Padded], bool] | None = None
) -> Iterator[Batch[int, Padded]]:
    """Group rows of like length, so that little is padded.

    No batch holds more than `token_budget` padded tokens, but a longer row alone; and none is so
    `is_loose` that it had better end before.

    Yields:
        Batches of indices into `rows`, the shortest rows first.
    """

    def is_full(extent: Padded) -> bool:
        return extent.n_padded > token_budget or (is_loose is not None and is_loose(extent))

    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    start = 0
    for batch in batches((rows[index] for index in order), NO_ROWS, is_full):
        end = start + len(batch.rows)
        yield Batch(order[start:end], batch.extent)
        start = end
