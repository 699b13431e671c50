"""What becomes of the facts of an edit: some go, some come, some take the place of others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date

from editbench.errors import UnknownNameError
from editbench.requests import (
    EditRequest,
    cut_batches,
    find_standing,
    find_superseded,
    refuse_conflicts,
)


@dataclass(frozen=True)
class Revision:
    """The facts of an edit from now on, and how they came to be.

    Attributes:
        requests: The facts, those that stay before those that are new.
        dropped: Those that were to go.
        expired: Those that do not hold any more, old or new.
        superseded: Old ones that are left out, since another is written in their place, each with
            that one.
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
    batch_size: int | None = None,
) -> Revision:
    """Work out what is left of facts, less what is dropped, with what is added.

    Args:
        old: The facts of an edit, in their order.
        drop: Ids of old facts that are to go.
        more: New facts. One that contradicts an old one supersedes it, which is left out.
        as_of: The day by which facts have expired that are left out; None leaves out none.
        batch_size: How many facts are written at a time; None for all at once. A fact that
            contradicts one of an earlier batch, both old or both new, supersedes it as it is
            written; both stay.

    Raises:
        UnknownNameError: No old fact has an id that is to be dropped.
        RequestError: New facts that are written together contradict each other.
    """
    dropping = set(drop)
    ids = {request.case_id for request in old}
    for name in dropping - ids:
        raise UnknownNameError("fact", name, ids)
    staying = [request for request in old if request.case_id not in dropping]
    # Two requests are equal whatever is noted beside them, and so whenever they expire.
    staying, old_expired = _separate_expired(staying, as_of)
    fresh, new_expired = _separate_expired(more, as_of)
    renewed = {request.fact for request in fresh}
    expired = [
        *(request for request in old_expired if request.fact not in renewed),
        *new_expired,
    ]
    if batch_size is None:
        refuse_conflicts(fresh)
    news = _find_news(staying, fresh)
    staying = [request for request in staying if request.fact not in news]
    by_content = {request.fact: request for request in staying}
    known: dict[EditRequest, EditRequest] = {}
    added: list[EditRequest] = []
    taken = {request.case_id for request in staying}
    for request in fresh:
        if (same := by_content.get(request.fact)) is not None:
            known[same] = replace(same, notes=request.notes) if request.notes else same
            continue
        case_id, count = request.case_id, 1
        while case_id in taken:
            count += 1
            case_id = f"{request.case_id}-{count}"
        taken.add(case_id)
        added.append(replace(request, case_id=case_id))
    n_old = len(staying)
    everything = [*(known.get(request, request) for request in staying), *added]
    replaced = {
        everything[one]: everything[by]
        for one, by in find_superseded(everything).items()
        if one < n_old <= by
    }
    rest, left_out = separate_batches(
        [one for one in everything if one not in replaced], batch_size, refused=added
    )
    replaced |= left_out
    return Revision(
        requests=tuple(rest),
        dropped=tuple(request for request in old if request.case_id in dropping),
        expired=tuple(expired),
        superseded=tuple(replaced.items()),
        known=tuple(known.values()),
        added=tuple(added),
    )


def _separate_expired(
    requests: Sequence[EditRequest], as_of: date | None
) -> tuple[list[EditRequest], list[EditRequest]]:
    """The facts that hold on a day, and those that do not any more."""
    if as_of is None:
        return list(requests), []
    return (
        [request for request in requests if not request.has_expired(as_of)],
        [request for request in requests if request.has_expired(as_of)],
    )


def _find_news(old: Sequence[EditRequest], fresh: Sequence[EditRequest]) -> set[object]:
    """What old facts say, and new ones say again in the place of something else."""
    said = {request.fact for request in old}
    outdated = {old[place].fact for place in find_superseded(old)}
    return outdated.intersection(request.fact for request in find_standing(fresh)) | {
        fresh[by].fact
        for one, by in find_superseded(fresh).items()
        if fresh[one].fact not in said and fresh[by].fact in said
    }


def separate_batches(
    requests: Sequence[EditRequest],
    batch_size: int | None,
    *,
    refused: Iterable[EditRequest] = (),
) -> tuple[list[EditRequest], dict[EditRequest, EditRequest]]:
    """Leave out the facts that a later one of their own batch supersedes.

    That moves those behind them into other batches, which are looked at again.

    Args:
        requests: Facts in the order in which they are written.
        batch_size: How many are written at a time; None for all at once.
        refused: Of these none may be left out for another.

    Returns:
        The facts that are left, and those left out, each with the one in its place.

    Raises:
        RequestError: Facts of `refused` contradict each other in a batch.
    """
    rest, left_out, unwanted = list(requests), dict[EditRequest, EditRequest](), set(refused)
    while True:
        batches = cut_batches(rest, batch_size)
        found = {
            batch[one]: batch[by]
            for batch in batches
            for one, by in find_superseded(batch).items()
            if batch[one] not in unwanted
        }
        if not found:
            for batch in batches:
                refuse_conflicts(batch)
            return rest, left_out
        left_out |= found
        rest = [request for request in rest if request not in found]


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
    """Compare the facts that stand in two edits, whatever their ids and their order.

    A fact that is superseded in an edit is not one of those that it makes a model say.
    """
    before = {request.fact: request for request in find_standing(first)}
    after = {request.fact: request for request in find_standing(second)}
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
