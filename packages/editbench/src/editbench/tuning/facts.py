"""Validation facts: some to search on, and others, of other subjects, to compare on afterwards."""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import ClassVar

from editbench.datasets.base import Dataset
from editbench.errors import ConfigError
from editbench.requests import EditCase, resolve_conflicts

_MOST_AT_ONCE = 100  # as many as 'editbench run' writes by default
_FIRST_SHARE = 4  # a trial is looked at with a quarter of the facts first


class ValidationFacts(Dataset):
    """Some cases of a dataset, in an order of their own.

    Args:
        cases: The cases.
    """

    name: ClassVar[str] = "validation facts"

    def __init__(self, cases: Sequence[EditCase]) -> None:
        super().__init__(None, Path())
        self._cases = tuple(cases)

    def cases(self) -> Sequence[EditCase]:
        """The cases."""
        return self._cases

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the cases, in hexadecimal."""
        return hashlib.sha256("".join(f"{case!r}\n" for case in self._cases).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Size:
    """How many facts are written at once, and how often, each time into the unedited model."""

    n_edits: int
    n_batches: int


@dataclass(frozen=True)
class Division:
    """Facts that no search may share with the comparison after it.

    Attributes:
        search: What hyperparameters are chosen on.
        held_out: What those chosen are compared with the default on.
        size: How many facts of each are written at once, and how often.
    """

    search: ValidationFacts
    held_out: ValidationFacts
    size: Size

    @property
    def rungs(self) -> tuple[Size, ...]:
        """The sizes at which a trial is looked at, growing to `size`.

        There are fewer batches first; where there are too few for that, fewer facts at once.
        """
        n_edits, n_batches = self.size.n_edits, self.size.n_batches
        if n_batches >= _FIRST_SHARE:
            return Size(n_edits, n_batches // _FIRST_SHARE), self.size
        if n_edits >= 2 * _FIRST_SHARE:
            return Size(n_edits // _FIRST_SHARE, 1), self.size
        return (self.size,)


def leave_out(cases: Sequence[EditCase], excluded: Iterable[EditCase]) -> list[EditCase]:
    """The cases whose subject is none of the excluded ones', whatever their capitals."""
    subjects = {_subject(case) for case in excluded}
    return [case for case in cases if _subject(case) not in subjects]


def divide(
    cases: Sequence[EditCase], n_edits: int | None, *, min_cases: int, seed: int
) -> Division:
    """Draw facts to search on and as many others to compare on; no subject is in both.

    Of facts that contradict each other the first is kept.

    Args:
        cases: Validation facts, in the dataset's order.
        n_edits: How many are written at once; None takes as many as there are, up to 100.
        min_cases: How many cases all batches should have together, where there are as many.
        seed: Source of the draw.

    Raises:
        ConfigError: There are too few.
    """
    kept, _ = resolve_conflicts(cases, "keep-first")
    subjects: dict[str, list[EditCase]] = {}
    for case in kept:
        subjects.setdefault(_subject(case), []).append(case)
    groups = list(subjects.values())
    random.Random(seed).shuffle(groups)
    halves: tuple[list[EditCase], list[EditCase]] = ([], [])
    for group in groups:
        min(halves, key=len).extend(group)
    most = min(map(len, halves))
    n_edits = n_edits or min(_MOST_AT_ONCE, most)
    if not 1 <= n_edits <= most:
        raise ConfigError(
            f"tune: there are too few validation facts, got {len(kept)} facts about "
            f"{len(groups)} subjects for n_edits {n_edits}; expected at most {most}, since half of "
            "them are held out to compare on. Give more facts or write fewer at once."
        )
    size = Size(n_edits, min(ceil(min_cases / n_edits), most // n_edits))
    search, held_out = (ValidationFacts(half[: n_edits * size.n_batches]) for half in halves)
    return Division(search, held_out, size)


def _subject(case: EditCase) -> str:
    return case.request.subject.strip().casefold()
