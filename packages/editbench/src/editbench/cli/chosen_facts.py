"""``edit``: which facts are to be written, and which of them together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import compress
from typing import TYPE_CHECKING

from editbench.cli.base import describe_revision, describe_superseded
from editbench.cli.lookup import read_cases
from editbench.cli.progress import ProgressDisplay
from editbench.errors import ConfigError
from editbench.requests import (
    ConflictPolicy,
    EditCase,
    EditRequest,
    cut_batches,
    find_superseded,
    resolve_conflicts,
    standing_cases,
)

if TYPE_CHECKING:
    from editbench.datasets.base import Dataset
    from editbench.editors.making import Base
    from editbench.models.greedy import Said


@dataclass(frozen=True)
class ChosenFacts:
    """The facts of an edit.

    Attributes:
        cases: In the order in which they are written, with what is asked beside them.
        batch_size: How many are written at a time; None for all at once.
    """

    cases: tuple[EditCase, ...]
    batch_size: int | None

    @property
    def requests(self) -> tuple[EditRequest, ...]:
        """What is written."""
        return tuple(case.request for case in self.cases)

    @property
    def batches(self) -> list[Sequence[EditRequest]]:
        """What is written at a time."""
        return cut_batches(self.requests, self.batch_size)

    @property
    def standing(self) -> list[EditCase]:
        """Those that no later batch takes the place of: what the edited model should say."""
        return standing_cases(self.cases)

    def without_known(self, said: "Sequence[Said]", display: ProgressDisplay) -> "ChosenFacts":
        """Leave out what the model says already, but not in the place of an earlier fact.

        Args:
            said: What the model says to each of them now.
            display: Told how many are left out.

        Raises:
            ConfigError: Nothing is left.
        """
        from editbench.edits.revision import separate_batches

        requests = self.requests
        later = set(find_superseded(requests).values())
        wanted = [not each.is_target or place in later for place, each in enumerate(said)]
        display.say(f"Known already, left out: {wanted.count(False)} fact(s).")
        # Facts of several batches can come to be in one, where the later one alone is written.
        left, _ = separate_batches(list(compress(requests, wanted)), self.batch_size)
        if not left:
            raise ConfigError("edit: no fact is left to write: the model knows them all.")
        kept = set(left)
        return replace(self, cases=tuple(case for case in self.cases if case.request in kept))

    def describe_superseded(self) -> Iterator[str]:
        """Say which facts later batches take the places of."""
        yield from describe_superseded(self.requests)


def choose_facts(
    dataset: "Dataset | None",
    base: "Base | None",
    *,
    on_conflict: ConflictPolicy,
    as_of: date | None,
    batch_size: int | None,
    display: ProgressDisplay,
) -> ChosenFacts:
    """Put together what a facts file and the edit that another is made from say.

    Args:
        dataset: The facts file, if there is one.
        base: The edit, likewise.
        on_conflict: What to do with facts of the file that contradict each other: ``error`` looks
            at each batch, the others at the whole file.
        as_of: The day by which facts have expired that are left out; None leaves out none.
        batch_size: How many facts are written at a time; None for all at once.
        display: Told what becomes of the facts.

    Raises:
        ConfigError: Nothing is left to write.
        RequestError: Facts that are written together contradict each other.
    """
    from editbench.edits.revision import revise

    cases = [] if dataset is None else list(read_cases(dataset, display))
    if on_conflict != "error":
        cases, conflicts = resolve_conflicts(cases, on_conflict)
        for conflict in conflicts:
            display.say(f"Conflict ({on_conflict}): {conflict}")
    revision = revise(
        base.recipe.requests if base else (),
        drop=base.drop if base else (),
        more=[case.request for case in cases],
        as_of=as_of,
        batch_size=batch_size,
    )
    for line in describe_revision(revision, with_added=base is not None):
        display.say(line)
    if not revision.requests:
        raise ConfigError("edit: no fact is left to write.")
    probes = {case.request.fact: case for case in cases}
    return ChosenFacts(
        tuple(
            replace(probes[request.fact], request=request)
            if request.fact in probes
            else EditCase(request)
            for request in revision.requests
        ),
        batch_size,
    )
