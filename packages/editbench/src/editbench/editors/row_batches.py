"""Which rows to run together, so that little is padded and memory stays within bounds."""

from collections.abc import Iterator, Sequence


def length_sorted_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Group rows of like length.

    Args:
        lengths: Tokens in each row.
        token_budget: Padded tokens that a batch may hold; a longer row is a batch of its own.

    Yields:
        Indices into `lengths`, shortest rows first.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > token_budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
