"""What to write into a model, and what to ask it afterwards.

`EditRequest` is all that an editor ever sees. `EditCase` adds the probes that judge the edit; they
stay on the evaluation side, so that no editor can train on its own exam.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from editbench.errors import RequestError, UnknownNameError
from editbench.portability import PortabilityProbe, Query
from editbench.questions import Score

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ProbeKind = Literal["efficacy", "paraphrase", "neighborhood"]
ConflictPolicy = Literal["error", "drop-all", "keep-first"]
T = TypeVar("T")

_UNSET: dict[str, Any] = {"joiner": None, "chat": False, "aliases": (), "conditions": ()}


def content_of(fact: "DataclassInstance") -> dict[str, Any]:
    """A request's, probe's or known fact's fields by name, for content addresses and files.

    `joiner`, `chat`, `aliases` and `conditions` are among them only where they are set: a fact that
    says nothing about how it is asked keeps the address that it had before one could say so. Its
    notes are never.
    """
    return {
        name: value
        for name, value in asdict(fact).items()
        if name != "notes" and (name not in _UNSET or value != _UNSET[name])
    }


def _show(fact: "DataclassInstance") -> str:
    """What `repr` says: `content_of`, so that addresses made of it stay, too."""
    shown = ", ".join(f"{name}={value!r}" for name, value in content_of(fact).items())
    return f"{type(fact).__name__}({shown})"


@dataclass(frozen=True, slots=True)
class FactNotes:
    """What people write beside a fact; it changes nothing about how the fact is written.

    Attributes:
        source: Where the fact is from.
        author: Who put it down.
        date: When; ISO 8601, ``2026-03-31``.
        note: Anything else.
        expires: The day from which it does not hold any more, likewise.
    """

    source: str | None = None
    author: str | None = None
    date: str | None = None
    note: str | None = None
    expires: str | None = None

    def __bool__(self) -> bool:
        return self != FactNotes()


@dataclass(frozen=True, slots=True)
class EditRequest:
    """One fact to write: (subject, relation, target), worded as a prompt.

    Attributes:
        case_id: Identifies the case within its dataset.
        subject: s, as it stands in the prompt.
        prompt: The relation in words, with exactly one ``{}`` where the subject goes.
        target: The new object o, without the space that joins it to the prompt.
        relation: A name of the relation r, where the dataset has one.
        joiner: What stands between prompt and target; None is the space that the prompt needs, if
            any.
        chat: Whether the prompt is a user's message and the target the beginning of the answer:
            the model's chat template goes around it.
        notes: What people wrote beside it; of no concern to what is equal to what.
    """

    case_id: str
    subject: str
    prompt: str
    target: str
    relation: str | None = None
    joiner: str | None = None
    chat: bool = False
    notes: FactNotes = dataclasses.field(default=FactNotes(), compare=False)

    __repr__ = _show

    def __post_init__(self) -> None:
        if self.prompt.count("{}") != 1:
            raise RequestError(
                f"request '{self.case_id}': field 'prompt' must contain '{{}}' exactly once, "
                f"got {self.prompt!r}. Put '{{}}' where the subject goes."
            )
        for name in ("subject", "target"):
            if not getattr(self, name).strip():
                raise RequestError(
                    f"request '{self.case_id}': field '{name}' must not be empty, "
                    f"got {getattr(self, name)!r}."
                )

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        before, after = self.prompt.split("{}")
        return f"{before}{self.subject}{after}"

    @property
    def subject_start(self) -> int:
        """Character offset of the subject in `text`."""
        return self.prompt.index("{}")

    @property
    def fact(self) -> tuple[str, str, str, str | None, bool]:
        """All that is written, and how it is asked: the same facts have the same target states."""
        return self.subject, self.prompt, self.target, self.joiner, self.chat

    def has_expired(self, day: date) -> bool:
        """Whether the fact does not hold any more on a day."""
        return self.notes.expires is not None and date.fromisoformat(self.notes.expires) <= day

    @property
    def question(self) -> Score:
        """How likely is the target after the prompt?"""
        return Score(self.text, self.target, self.joiner, self.chat)


@dataclass(frozen=True, slots=True)
class Probe:
    """One question about an edit: after `prompt`, is `expected` what the model says?

    Attributes:
        kind: Which quality of the edit the probe measures.
        prompt: Complete text; the model is asked to continue it.
        expected: The continuation that counts as success.
        alternative: The continuation that `expected` competes with (Eqns 24-26);
            None where the dataset names none (zsRE), and then only accuracy is defined.
        joiner: What stands between prompt and continuation; see `EditRequest`.
        chat: Whether the prompt is a user's message; see `EditRequest`.
        aliases: Other names of what is expected, which a text of the model's own may use.
        conditions: What the unedited model must know, or else the probe does not count.
    """

    kind: ProbeKind
    prompt: str
    expected: str
    alternative: str | None = None
    joiner: str | None = None
    chat: bool = False
    aliases: tuple[str, ...] = ()
    conditions: tuple[Query, ...] = ()

    __repr__ = _show

    def question(self, continuation: str) -> Score:
        """How likely is a continuation, the expected one or another, after the prompt?"""
        return Score(self.prompt, continuation, self.joiner, self.chat)


@dataclass(frozen=True, slots=True)
class EditCase:
    """A request together with everything that judges whether it worked.

    Attributes:
        request: What the editor is given.
        target_true: The object that the unedited model is thought to hold, where known.
        probes: Efficacy, paraphrase and neighborhood probes.
        generation_prompts: Openings from which text is generated to judge fluency.
        reference_texts: Texts about the new target, to judge consistency against.
        portability: What follows from the edit. It does not show in `repr`, so that results of
            before there were such probes keep their addresses.
    """

    request: EditRequest
    target_true: str | None = None
    probes: tuple[Probe, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    reference_texts: tuple[str, ...] = ()
    portability: tuple[PortabilityProbe, ...] = dataclasses.field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Requests that ask for different targets in the same place (Eqn 5)."""

    subject: str
    relation: str
    requests: tuple[EditRequest, ...]

    def __str__(self) -> str:
        targets = ", ".join(f"{request.target!r} ({request.case_id})" for request in self.requests)
        return f"{self.subject!r}, {self.relation!r}: {targets}"


def find_conflicts(requests: Sequence[EditRequest]) -> list[Conflict]:
    """Find the requests that violate Eqn 5: same subject and relation, different target.

    Two requests share a relation if their relation names agree or, whether or not they are named,
    if their prompts do. Conflicts are transitive through either, and are listed in the order of
    their first request.
    """
    return [_conflict_at(group, requests) for group in _conflicting_positions(requests)]


def find_superseded(requests: Sequence[EditRequest]) -> dict[int, int]:
    """Find the facts that a later one contradicts, which is a revision of them.

    Args:
        requests: Facts in the order in which they are written.

    Returns:
        The position of a fact to that of the last one about the same subject and relation, whose
        target is another.
    """
    return {
        position: group[-1]
        for group in _conflicting_positions(requests)
        for position in group
        if requests[position].target.strip() != requests[group[-1]].target.strip()
    }


def find_standing(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """The facts that stand once all are written, in their order: none that is superseded."""
    superseded = find_superseded(requests)
    return [request for place, request in enumerate(requests) if place not in superseded]


def standing_cases(cases: Sequence[EditCase]) -> list[EditCase]:
    """The cases whose facts stand once all are written, see `find_standing`."""
    superseded = find_superseded([case.request for case in cases])
    return [case for place, case in enumerate(cases) if place not in superseded]


def refuse_conflicts(requests: Sequence[EditRequest]) -> None:
    """Refuse requests that are to be written together and contradict each other.

    Raises:
        RequestError: Some do; the message names the first.
    """
    if conflicts := find_conflicts(requests):
        raise RequestError(
            f"conflicting requests: {len(conflicts)} group(s) ask for different targets of the "
            f"same subject and relation, first {conflicts[0]}. Mend the data (if all of "
            "them hold: one fact whose target lists them), or choose --on-conflict drop-all or "
            "--on-conflict keep-first."
        )


def resolve_conflicts(
    cases: Sequence[EditCase], policy: ConflictPolicy
) -> tuple[list[EditCase], list[Conflict]]:
    """Apply an explicit policy to conflicting cases.

    Args:
        cases: Cases in dataset order.
        policy: ``error`` refuses; ``drop-all`` removes every case of a conflict (as the published
            conflict-free CounterFact does); ``keep-first`` keeps the first case of each.

    Returns:
        The cases that remain, in order, and the conflicts that were found.

    Raises:
        RequestError: There are conflicts and the policy is ``error``.
        UnknownNameError: There is no such policy.
    """
    if policy not in get_args(ConflictPolicy):
        raise UnknownNameError("conflict policy", policy, get_args(ConflictPolicy))
    requests = [case.request for case in cases]
    if policy == "error":
        refuse_conflicts(requests)
        return list(cases), []
    groups = _conflicting_positions(requests)
    conflicts = [_conflict_at(group, requests) for group in groups]
    n_kept = 0 if policy == "drop-all" else 1
    dropped = {position for group in groups for position in group[n_kept:]}
    return [case for position, case in enumerate(cases) if position not in dropped], conflicts


def _conflict_at(group: Sequence[int], requests: Sequence[EditRequest]) -> Conflict:
    members = tuple(requests[position] for position in group)
    first = members[0]
    return Conflict(first.subject, first.relation or first.prompt, members)


def _conflicting_positions(requests: Sequence[EditRequest]) -> list[list[int]]:
    """Group the positions of requests that share a place, and keep the groups that disagree.

    Positions, not objects: the same request may stand in the sequence more than once. The groups
    are the connected components of "has the same place", found by union-find so that one place
    shared by all of 20,000 requests costs no more than 20,000 distinct ones.
    """
    root_of = list(range(len(requests)))

    def find_root(position: int) -> int:
        while root_of[position] != position:
            root_of[position] = root_of[root_of[position]]
            position = root_of[position]
        return position

    first_at: dict[tuple[str, str, str], int] = {}
    for position, request in enumerate(requests):
        places = [(request.subject, "prompt", request.prompt)]
        if request.relation is not None:
            places.append((request.subject, "relation", request.relation))
        for place in places:
            one = find_root(position)
            other = find_root(first_at.setdefault(place, position))
            root_of[max(one, other)] = min(one, other)

    groups: dict[int, list[int]] = {}
    for position in range(len(requests)):
        groups.setdefault(find_root(position), []).append(position)
    return [
        group
        for group in groups.values()
        if len({requests[position].target.strip() for position in group}) > 1
    ]


def cut_batches(requests: Sequence[T], batch_size: int | None) -> list[Sequence[T]]:
    """Requests, or cases, in their order, `batch_size` at a time; the last batch is what is left.

    Args:
        requests: All of them.
        batch_size: How many at a time; None for all at once.
    """
    size = len(requests) if batch_size is None else batch_size
    return [requests[start : start + size] for start in range(0, len(requests), max(1, size))]
