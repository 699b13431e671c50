"""What becomes of the facts of an edit: some go, some come, some take the place of others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date

from editbench.errors import UnknownNameError
from editbench.requests import EditRequest, find_superseded


@dataclass(frozen=True)
class Revision:
    """The facts of an edit from now on, and how they came to be.

    Attributes:
        requests: The facts, those that stay before those that are new.
        dropped: Those that were to go.
        expired: Those that do not hold any more, old or new.
        superseded: Old ones that a new one contradicts, each with that one.
        known: New ones that were there already; what is noted beside them is the new notes.
        added: The other new ones; one whose id an old fact has got another.
    """

    requests: tuple[EditRequest, ...]
    dropped: tuple[EditRequest, ...]
    expired: tuple[EditRequest, ...]
    superseded: tuple[tuple[EditRequest, EditRequest], ...]
    known: tuple[EditRequest, ...]
    added: tuple[EditRequest, ...]


def revise(
    old: Sequence[EditRequest],
    *,
    drop: Iterable[str] = (),
    more: Sequence[EditRequest] = (),
    as_of: date | None = None,
) -> Revision:
    """Work out what is left of facts, less what is dropped, with what is added.

    Args:
        old: The facts of an edit, in their order.
        drop: Ids of old facts that are to go.
        more: New facts, free of conflicts among themselves. One that contradicts an old one
            supersedes it.
        as_of: The day by which facts have expired that are left out; None leaves out none.

    Raises:
        UnknownNameError: No old fact has an id that is to be dropped.
    """
    dropping = set(drop)
    ids = {request.case_id for request in old}
    for name in dropping - ids:
        raise UnknownNameError("fact", name, ids)
    staying = [request for request in old if request.case_id not in dropping]
    expired = [
        request for request in [*staying, *more] if as_of is not None and request.has_expired(as_of)
    ]
    staying = [request for request in staying if request not in expired]
    by_content = {request.fact: request for request in staying}
    known: dict[EditRequest, EditRequest] = {}
    added: list[EditRequest] = []
    taken = {request.case_id for request in staying}
    for request in more:
        if request in expired:
            continue
        if (same := by_content.get(request.fact)) is not None:
            known[same] = replace(same, notes=request.notes) if request.notes else same
            continue
        case_id, count = request.case_id, 1
        while case_id in taken:
            count += 1
            case_id = f"{request.case_id}-{count}"
        taken.add(case_id)
        added.append(replace(request, case_id=case_id))
    everything = [*(known.get(request, request) for request in staying), *added]
    replaced = find_superseded(everything)
    return Revision(
        requests=tuple(one for place, one in enumerate(everything) if place not in replaced),
        dropped=tuple(request for request in old if request.case_id in dropping),
        expired=tuple(expired),
        superseded=tuple((everything[one], everything[by]) for one, by in replaced.items()),
        known=tuple(known.values()),
        added=tuple(added),
    )


@dataclass(frozen=True)
class FactDifference:
    """How the facts of two edits differ.

    Attributes:
        dropped: Facts of the first one that the second one has not.
        added: Facts of the second one that the first one has not.
        changed: Facts of both about the same, with another object: the first one's and the other.
        n_same: How many they share.
    """

    dropped: tuple[EditRequest, ...]
    added: tuple[EditRequest, ...]
    changed: tuple[tuple[EditRequest, EditRequest], ...]
    n_same: int


def compare_facts(first: Sequence[EditRequest], second: Sequence[EditRequest]) -> FactDifference:
    """Compare the facts of two edits, whatever their ids and their order."""
    before = {request.fact: request for request in first}
    after = {request.fact: request for request in second}
    gone = [request for fact, request in before.items() if fact not in after]
    new = [request for fact, request in after.items() if fact not in before]
    pairs = [*gone, *new]
    changed = {one: by for one, by in find_superseded(pairs).items() if one < len(gone) <= by}
    return FactDifference(
        dropped=tuple(one for place, one in enumerate(gone) if place not in changed),
        added=tuple(
            one for place, one in enumerate(new, len(gone)) if place not in changed.values()
        ),
        changed=tuple((pairs[one], pairs[by]) for one, by in changed.items()),
        n_same=len(before.keys() & after.keys()),
    )
