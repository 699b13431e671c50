"""What is put to a model to score tokens, and to write some: each thing once.

The last token of a continuation is only ever predicted, so it is left out of the input; then all
one-token continuations of a prompt have the same input, and more generally any input that begins
another one is read off that other one's pass: in a causal model, nothing later changes it. Several
longer continuations of a prompt branch off it: the prompt is run once, and they behind it; so is
what the model writes there by itself. What many prompts begin with is run once for all of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from editbench.models.batches import NO_ROWS, Batch, Padded, batches

Label = TypeVar("Label")


@dataclass(frozen=True, slots=True)
class Passage(Generic[Label]):
    """Tokens to score, and what comes before them.

    Attributes:
        label: What the scores are for.
        context: Ids of the tokens before; at least one.
        targets: Ids of the tokens to score; at least one.
    """

    label: Label
    context: Sequence[int]
    targets: Sequence[int]


@dataclass(frozen=True, slots=True)
class Opening(Generic[Label]):
    """Tokens that a model is to go on after by itself.

    Attributes:
        label: What the text is for.
        context: Ids of the tokens; at least one.
        n_tokens: How many tokens it writes at most.
        sentence: Whether its first sentence is enough.
    """

    label: Label
    context: Sequence[int]
    n_tokens: int
    sentence: bool


@dataclass(frozen=True, slots=True)
class Branch(Generic[Label]):
    """Tokens behind a row, and what is read off them.

    Attributes:
        ids: The tokens; at least one.
        read: Labels with their targets; the row's last position predicts the first target, and
            the branch's positions predict the others.
    """

    ids: tuple[int, ...]
    read: list[tuple[Label, Sequence[int]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TokenRow(Generic[Label]):
    """One input sequence, and what is read off it.

    Attributes:
        ids: The tokens.
        read: Labels with the position that predicts their first target, and their targets.
        branches: What goes on behind the sequence, in different ways.
        openings: Why the model is to go on behind the sequence by itself.
    """

    ids: tuple[int, ...]
    read: list[tuple[Label, int, Sequence[int]]] = field(default_factory=list)
    branches: list[Branch[Label]] = field(default_factory=list)
    openings: list[Opening[Label]] = field(default_factory=list)

    @property
    def is_trunk(self) -> bool:
        """Whether something follows behind the sequence, and sees its keys and values."""
        return bool(self.branches or self.openings)

    @property
    def n_written(self) -> int:
        """How many tokens the model writes behind the sequence, at most."""
        return max((opening.n_tokens for opening in self.openings), default=0)

    @property
    def positions(self) -> list[int]:
        """The positions at which logits are needed, ascending."""
        read = {first + offset for _, first, targets in self.read for offset in range(len(targets))}
        return sorted(read | ({len(self.ids) - 1} if self.is_trunk else set()))

    @property
    def beginning(self) -> tuple[int, ...]:
        """The tokens before the first position at which logits are needed."""
        return self.ids[: self.positions[0]]

    @property
    def n_reads(self) -> int:
        """At how many places, branches included, logits are needed."""
        return len(self.positions) + sum(len(branch.ids) for branch in self.branches)

    def cut_apart(self) -> "list[TokenRow[Label]]":
        """The same as rows without branches, one for each, and one for what is to be written."""
        first = len(self.ids) - 1
        rows: list[TokenRow[Label]] = []
        for branch in self.branches:
            read = [(label, first, targets) for label, targets in branch.read]
            rows.append(TokenRow(self.ids + branch.ids, read))
        if self.openings:
            rows.append(TokenRow(self.ids, openings=self.openings))
        rows[0].read.extend(self.read)
        return rows


def make_rows(
    passages: Iterable[Passage[Label]], openings: Iterable[Opening[Label]] = ()
) -> list[TokenRow[Label]]:
    """Gather what passages and openings have in common."""
    by_context: dict[tuple[int, ...], tuple[list[Passage[Label]], list[Opening[Label]]]] = {}
    for passage in passages:
        by_context.setdefault(tuple(passage.context), ([], []))[0].append(passage)
    for opening in openings:
        by_context.setdefault(tuple(opening.context), ([], []))[1].append(opening)
    plain: list[Passage[Label]] = []
    rows: list[TokenRow[Label]] = []
    for context, (some, opened) in by_context.items():
        row = _branch_off(context, some, opened)
        if row is None:
            plain += some
        else:
            rows.append(row)
    return _merge(plain, rows)


def batch_rows(
    rows: Iterable[TokenRow[Label]],
    *,
    token_budget: int,
    read_budget: int,
    cache_budget: int,
    prefix: tuple[int, ...] = (),
    copy_budget: int = 0,
) -> "Iterator[Batch[TokenRow[Label], RowExtent]]":
    """Group rows of like length; the longest first, so that a lack of memory shows at once.

    Rows that something follows behind and others are not mixed. The budgets are of tokens that run
    together, padding included, of places at which logits are read, of tokens that are kept for
    what follows to see, and, where all rows begin with a `prefix` that has been run, of tokens that
    it is copied with.
    """
    kinds: dict[bool, list[TokenRow[Label]]] = {True: [], False: []}
    empty = RowExtent(prefix)
    for row in rows:
        if row.branches and empty.grown(row).n_tokens > token_budget:
            for part in row.cut_apart():
                kinds[part.is_trunk].append(part)
        else:
            kinds[row.is_trunk].append(row)

    def is_full(extent: RowExtent) -> bool:
        is_large = extent.n_tokens > token_budget or extent.n_reads > read_budget
        return is_large or extent.n_cached > cache_budget or extent.n_copied > copy_budget

    for some in kinds.values():
        longest_first = sorted(some, key=lambda row: len(row.ids), reverse=True)
        yield from batches(longest_first, empty, is_full)


@dataclass(frozen=True, slots=True)
class RowExtent:
    """How large rows with their branches are together.

    Attributes:
        prefix: What all rows begin with, which has been run.
        rows: The rows, without it.
        branches: Their branches.
        n_reads: Places at which logits are needed.
        texts: What is written behind them, at most.
    """

    prefix: tuple[int, ...] = ()
    rows: Padded = NO_ROWS
    branches: Padded = NO_ROWS
    n_reads: int = 0
    texts: Padded = NO_ROWS

    def grown(self, row: TokenRow[Label]) -> "RowExtent":
        """The extent with one row more."""
        own = range(len(self.prefix), len(row.ids))
        branches = self.branches
        for branch in row.branches:
            branches = branches.grown(branch.ids)
        texts = self.texts.grown(range(row.n_written)) if row.openings else self.texts
        n_reads = self.n_reads + row.n_reads
        return RowExtent(self.prefix, self.rows.grown(own), branches, n_reads, texts)

    @property
    def n_tokens(self) -> int:
        """Tokens, padding included."""
        return self.rows.n_padded + self.branches.n_padded

    @property
    def n_cached(self) -> int:
        """Tokens that are kept for what follows to see, and its own."""
        return sum(
            behind.n_rows * (self.rows.width + behind.width)
            for behind in (self.branches, self.texts)
        )

    @property
    def n_copied(self) -> int:
        """Tokens that the prefix is copied with, for each row, while a block runs."""
        if not self.prefix:
            return 0
        n_own = self.rows.width + max(self.branches.width, self.texts.width)
        n_rows = max(some.n_rows for some in (self.rows, self.branches, self.texts))
        return n_rows * (len(self.prefix) + n_own)


def _branch_off(
    context: tuple[int, ...],
    passages: Sequence[Passage[Label]],
    openings: list[Opening[Label]],
) -> TokenRow[Label] | None:
    """A trunk, if that saves running a long context more than once, or texts follow it."""
    row: TokenRow[Label] = TokenRow(context, openings=openings)
    # From the back, as in `_merge`.
    for passage in sorted(passages, key=lambda passage: tuple(passage.targets), reverse=True):
        ids = tuple(passage.targets[:-1])
        if not ids:
            row.read.append((passage.label, len(context) - 1, passage.targets))
            continue
        if not row.branches or row.branches[-1].ids[: len(ids)] != ids:
            row.branches.append(Branch(ids))
        row.branches[-1].read.append((passage.label, passage.targets))
    longest = max((len(branch.ids) for branch in row.branches), default=0)
    is_worth_it = len(row.branches) > 1 and len(context) > longest
    return row if is_worth_it or openings else None


def _merge(
    passages: Iterable[Passage[Label]], trunks: Iterable[TokenRow[Label]]
) -> list[TokenRow[Label]]:
    """Put passages into rows: what begins another row, a trunk too, is read off that one."""
    asked: list[tuple[tuple[int, ...], Passage[Label] | TokenRow[Label]]] = [
        ((*passage.context, *passage.targets[:-1]), passage) for passage in passages
    ]
    asked += [(trunk.ids, trunk) for trunk in trunks]
    rows: list[TokenRow[Label]] = []
    # In sorted order whatever begins with a sequence follows it; so from the back, a sequence
    # that begins another one begins the one that was taken last.
    for ids, each in sorted(asked, key=lambda entry: entry[0], reverse=True):
        if isinstance(each, TokenRow):
            rows.append(each)
            continue
        if not rows or rows[-1].ids[: len(ids)] != ids:
            rows.append(TokenRow(ids))
        rows[-1].read.append((each.label, len(each.context) - 1, each.targets))
    return rows
