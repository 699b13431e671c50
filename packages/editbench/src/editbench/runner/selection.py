"""Which cases of a dataset a trial edits."""

import random
from collections.abc import Sequence

from editbench.errors import ConfigError
from editbench.requests import Conflict, ConflictPolicy, EditCase, resolve_conflicts
from editbench.results.manifest import Sample


def select_cases(
    cases: Sequence[EditCase],
    n_edits: int,
    *,
    sample: Sample,
    seed: int,
    on_conflict: ConflictPolicy,
) -> tuple[list[EditCase], list[Conflict]]:
    """Choose the cases that are edited together.

    A policy that drops cases is applied to the whole dataset first, so that `n_edits` cases remain
    and larger batches contain the smaller ones; ``error`` looks only at the cases that are chosen.

    Args:
        cases: All cases, in the dataset's order.
        n_edits: How many are wanted.
        sample: ``first`` takes them in the dataset's order, whatever the seed, as the reference
            does; ``shuffled`` draws them with the seed.
        seed: Seed of the draw.
        on_conflict: What to do with requests that contradict each other (Eqn 5).

    Returns:
        `n_edits` cases, and the conflicts that the policy resolved.

    Raises:
        ConfigError: `n_edits` is not positive, or there are not that many cases.
        RequestError: Chosen cases are in conflict and the policy is ``error``.
    """
    if n_edits < 1:
        raise ConfigError(f"select cases: n_edits must be at least 1, got {n_edits}.")
    remaining = list(cases)
    conflicts: list[Conflict] = []
    if on_conflict != "error":
        remaining, conflicts = resolve_conflicts(cases, on_conflict)
    if n_edits > len(remaining):
        dropped = len(cases) - len(remaining)
        without = f" besides {dropped} dropped for conflicts" if dropped else ""
        raise ConfigError(
            f"select cases: the dataset has too few cases, got n_edits {n_edits}; expected at most "
            f"{len(remaining)}{without}. Ask for fewer edits or give a larger dataset."
        )
    if sample == "shuffled":
        random.Random(seed).shuffle(remaining)
    chosen = remaining[:n_edits]
    if on_conflict == "error":
        resolve_conflicts(chosen, "error")
    return chosen, conflicts
