"""Which rows begin alike for so long that their beginning is worth a pass of its own."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, TypeVar

from editbench.models.editable import EditableModel
from editbench.models.shared_prefix import can_share, count_shared

Row = TypeVar("Row")

# Shorter beginnings cost as much to put before rows as to run with them.
_LEAST_TOKENS = 8
# About as many tokens as run in the time that a group costs: a pass for its beginning, and batches
# that end with it.
_COST = 2_048


@dataclass(frozen=True, slots=True)
class PrefixGroup(Generic[Row]):
    """Rows, and what all of them begin with.

    Attributes:
        prefix: The tokens; none where nothing is shared.
        rows: The rows.
    """

    prefix: tuple[int, ...]
    rows: list[Row]


def group_by_prefix(
    model: EditableModel,
    rows: Sequence[Row],
    beginning: Callable[[Row], Sequence[int]],
    token_budget: int,
) -> Iterator[PrefixGroup[Row]]:
    """Divide rows into those that share a beginning, and others.

    Each group saves more tokens than it costs, and no other choice of groups saves more. A model
    that cannot share (`can_share`) has one group, which shares nothing.

    Args:
        model: The model.
        rows: The rows.
        beginning: The tokens of a row that others may share: those before the first place that is
            read, so that something is left to run.
        token_budget: At most how many tokens one forward pass holds.

    Yields:
        The groups, the others last; rows in the order they came in.
    """
    beginnings = [tuple(beginning(row)) for row in rows]
    cost = min(_COST, token_budget)
    found: list[_Span] = []
    if sum(map(len, beginnings)) > cost and can_share(model):
        order = sorted(range(len(rows)), key=beginnings.__getitem__)
        found = _choose([beginnings[index] for index in order], cost)
    alone = set(range(len(rows)))
    for span in found:
        members = sorted(order[span.first : span.end])
        alone.difference_update(members)
        prefix = beginnings[members[0]][: span.n_shared]
        yield PrefixGroup(prefix, [rows[index] for index in members])
    if alone:
        yield PrefixGroup((), [rows[index] for index in sorted(alone)])


@dataclass(slots=True)
class _Span:
    """Neighbors in sorted order, from `first` to before `end`, that share so many tokens.

    Attributes:
        inside: The best groups within it.
        n_saved: Tokens that these save, less what they cost.
    """

    n_shared: int
    first: int
    end: int = 0
    inside: "list[_Span]" = field(default_factory=list)
    n_saved: int = 0

    def take(self, other: "_Span", cost: int) -> None:
        """Take a span inside of this one as a group, or the groups in it if they are better."""
        own = other.n_shared * (other.end - other.first - 1) - cost
        if other.n_shared >= _LEAST_TOKENS and own > other.n_saved:
            self.inside.append(other)
            self.n_saved += own
        else:
            self.inside += other.inside
            self.n_saved += other.n_saved


def _choose(ordered: Sequence[tuple[int, ...]], cost: int) -> list[_Span]:
    """The groups of sorted sequences that save most, by one walk along what neighbors share."""
    shared = [count_shared(pair) for pair in pairwise(ordered)]
    open_spans = [_Span(0, 0)]  # each inside of the one before, and sharing more
    for place, n_shared in enumerate([*shared, 0], start=1):
        first, closed = place - 1, None
        while open_spans[-1].n_shared > n_shared:
            closed = open_spans.pop()
            closed.end, first = place, closed.first
            if open_spans[-1].n_shared >= n_shared:
                open_spans[-1].take(closed, cost)
                closed = None
        if open_spans[-1].n_shared < n_shared:
            opened = _Span(n_shared, first)
            if closed is not None:
                opened.take(closed, cost)
            open_spans.append(opened)
    return open_spans[0].inside
