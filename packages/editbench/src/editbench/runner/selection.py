"""Which cases of a dataset a trial edits, and which of them together."""

import random
from collections.abc import Callable, Sequence
from itertools import chain

from editbench.errors import ConfigError
from editbench.requests import (
    Conflict,
    ConflictPolicy,
    EditCase,
    cut_batches,
    refuse_conflicts,
    resolve_conflicts,
)
from editbench.results.manifest import Sample

Choose = Callable[[Sequence[EditCase], int], list[EditCase]]
"""Leaves the first so many of some cases that are wanted, or as many as there are."""


def select_batches(
    cases: Sequence[EditCase],
    n_edits: int,
    *,
    n_batches: int = 1,
    batch_size: int | None = None,
    relations: Sequence[str] = (),
    sample: Sample,
    seed: int,
    on_conflict: ConflictPolicy,
    choose: Choose | None = None,
) -> tuple[list[list[EditCase]], list[Conflict]]:
    """Choose the cases of a trial, in batches that are edited together.

    A policy that drops cases is applied to the whole dataset first, so that enough cases remain
    and larger batches contain the smaller ones; ``error`` looks only at the cases of one batch.

    Args:
        cases: All cases, in the dataset's order.
        n_edits: How many are edited together.
        n_batches: How many batches, each of them on the unedited model; no case is in two.
        batch_size: How many cases of a batch are written at a time; None for all at once. Later
            ones may contradict earlier ones, and take their places.
        relations: Edit facts of these relations alone, in turns, so that each has the same share;
            none means all relations, as they come.
        sample: ``first`` takes cases in the dataset's order, whatever the seed, as the reference
            does; ``shuffled`` draws them with the seed.
        seed: Seed of the draw.
        on_conflict: What to do with requests that contradict each other (Eqn 5).
        choose: Leaves only some of the cases, of each relation as many as are needed; None leaves
            all.

    Returns:
        `n_batches` lists of `n_edits` cases, and the conflicts that the policy resolved.

    Raises:
        ConfigError: `n_edits` or `n_batches` is not positive; there are not enough cases; or a
            relation does not occur.
        RequestError: Cases that are written together are in conflict and the policy is ``error``.
    """
    for name, number in (("n_edits", n_edits), ("n_batches", n_batches)):
        if number < 1:
            raise ConfigError(f"select cases: {name} must be at least 1, got {number}.")
    remaining = list(cases)
    conflicts: list[Conflict] = []
    if on_conflict != "error":
        remaining, conflicts = resolve_conflicts(cases, on_conflict)
    n_dropped = len(cases) - len(remaining)
    if sample == "shuffled":
        random.Random(seed).shuffle(remaining)
    n_wanted = n_edits * n_batches
    if relations:
        groups = [_of_relation(remaining, relation) for relation in relations]
        if choose is not None:
            groups = [choose(group, -(-n_wanted // len(groups))) for group in groups]
        remaining = list(chain.from_iterable(zip(*groups, strict=False)))  # in turns
    elif choose is not None:
        remaining = choose(remaining, n_wanted)
    if n_wanted > len(remaining):
        wanted = f"n_edits {n_edits}" + (f" in {n_batches} batches" if n_batches > 1 else "")
        left = " that the model's knowledge leaves" if choose is not None else ""
        within = f" of {' and '.join(relations)} in equal shares" if relations else ""
        without = f" besides {n_dropped} dropped for conflicts" if n_dropped else ""
        raise ConfigError(
            f"select cases: the dataset has too few cases, got {wanted}; expected at most "
            f"{len(remaining)}{left}{within}{without}. Ask for fewer edits or give a larger "
            "dataset."
        )
    batches = [remaining[start : start + n_edits] for start in range(0, n_wanted, n_edits)]
    if on_conflict == "error":
        for part in chain.from_iterable(cut_batches(batch, batch_size) for batch in batches):
            refuse_conflicts([case.request for case in part])
    return batches, conflicts


def _of_relation(cases: Sequence[EditCase], relation: str) -> list[EditCase]:
    found = [case for case in cases if case.request.relation == relation]
    if not found:
        known = sorted({case.request.relation for case in cases if case.request.relation})
        raise ConfigError(
            f"select cases: no case has the relation, got {relation!r}; expected one of "
            f"{', '.join(known) or 'none, since the dataset names no relations'}."
        )
    return found
