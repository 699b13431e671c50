"""What to write into a model, and what to ask it afterwards.

`EditRequest` is all that an editor ever sees. `EditCase` adds the probes that judge the edit; they
stay on the evaluation side, so that no editor can train on its own exam.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from editbench.errors import RequestError, UnknownNameError
from editbench.questions import Score

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ProbeKind = Literal["efficacy", "paraphrase", "neighborhood"]
PortabilityKind = Literal["reasoning", "aliasing", "reversal", "multi_hop"]
ConflictPolicy = Literal["error", "drop-all", "keep-first"]

_UNSET: dict[str, Any] = {"joiner": None, "chat": False, "aliases": (), "conditions": ()}


def content_of(fact: "DataclassInstance") -> dict[str, Any]:
    """A request's, probe's or known fact's fields by name, for content addresses and files.

    `joiner`, `chat`, `aliases` and `conditions` are among them only where they are set: a fact that
    says nothing about how it is asked keeps the address that it had before one could say so.
    """
    return {
        name: value
        for name, value in asdict(fact).items()
        if name not in _UNSET or value != _UNSET[name]
    }


def _show(fact: "DataclassInstance") -> str:
    """What `repr` says: `content_of`, so that addresses made of it stay, too."""
    shown = ", ".join(f"{name}={value!r}" for name, value in content_of(fact).items())
    return f"{type(fact).__name__}({shown})"


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
    """

    case_id: str
    subject: str
    prompt: str
    target: str
    relation: str | None = None
    joiner: str | None = None
    chat: bool = False

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

    @property
    def question(self) -> Score:
        """How likely is the target after the prompt?"""
        return Score(self.text, self.target, self.joiner, self.chat)


@dataclass(frozen=True, slots=True)
class Query:
    """A prompt, and what the model may say next.

    Attributes:
        prompt: Complete text; the model is asked to continue it.
        answers: The answer, and other names of it or other right ones; any of them counts.
        joiner: What stands between prompt and answer; see `EditRequest`.
        chat: Whether the prompt is a user's message; see `EditRequest`.
    """

    prompt: str
    answers: tuple[str, ...]
    joiner: str | None = None
    chat: bool = False

    @property
    def questions(self) -> tuple[Score, ...]:
        """How likely is each of the answers after the prompt?"""
        return tuple(Score(self.prompt, each, self.joiner, self.chat) for each in self.answers)


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
class Hop:
    """One fact of those that an answer follows from.

    Attributes:
        subject: Whom it is about, as requests call it.
        relation: The relation's name in requests.
        target: The object.
        is_edited: Whether it is so only once a request has written it.
    """

    subject: str
    relation: str
    target: str
    is_edited: bool


@dataclass(frozen=True, slots=True)
class PortabilityProbe:
    """Does the model answer what follows from an edit?

    Attributes:
        kind: How it follows: by any other inference, under another name of the subject, in the
            other direction, or over further facts.
        queries: What is asked.
        needs_all: Whether all queries must be answered right; otherwise one is enough.
        conditions: What the unedited model must know, or else the probe does not count.
        hops: The facts that the answers follow from, where the dataset names them.
    """

    kind: PortabilityKind
    queries: tuple[Query, ...]
    needs_all: bool = False
    conditions: tuple[Query, ...] = ()
    hops: tuple[Hop, ...] = ()


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
    portability: tuple[PortabilityProbe, ...] = field(default=(), repr=False)


def mask_contaminated(cases: Sequence[EditCase]) -> tuple[list[EditCase], int]:
    """Leave out the portability probes that have another answer once all of a batch is written.

    An edit of weights cannot be withheld from one question, so the question is: where a request
    of the batch writes another object into one of its hops (as MQuAKE-Remastered masks edits of
    other cases, Zhong et al. 2025), and where the batch lacks a request that it follows from.

    Args:
        cases: The cases of one batch.

    Returns:
        The cases with the probes that remain, and how many were left out.
    """
    written: dict[tuple[str, str | None], set[str]] = {}
    for request in (case.request for case in cases):
        written.setdefault((request.subject, request.relation), set()).add(request.target)

    def holds(hop: Hop) -> bool:
        targets = written.get((hop.subject, hop.relation), set())
        return targets == {hop.target} or not (targets or hop.is_edited)

    kept = [
        replace(
            case, portability=tuple(each for each in case.portability if all(map(holds, each.hops)))
        )
        for case in cases
    ]
    n_before, n_after = (sum(len(case.portability) for case in each) for each in (cases, kept))
    return kept, n_before - n_after


def as_chat(case: EditCase) -> EditCase:
    """The case with every prompt as a user's message, and what follows as the answer to it."""

    def ask(queries: tuple[Query, ...]) -> tuple[Query, ...]:
        return tuple(replace(query, chat=True) for query in queries)

    return replace(
        case,
        request=replace(case.request, chat=True),
        probes=tuple(
            replace(probe, chat=True, conditions=ask(probe.conditions)) for probe in case.probes
        ),
        portability=tuple(
            replace(probe, queries=ask(probe.queries), conditions=ask(probe.conditions))
            for probe in case.portability
        ),
    )


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
    groups = _conflicting_positions(requests)
    conflicts = [_conflict_at(group, requests) for group in groups]
    if not conflicts:
        return list(cases), []
    if policy == "error":
        raise RequestError(
            f"conflicting requests: {len(conflicts)} group(s) ask for different targets of the "
            f"same subject and relation, first {conflicts[0]}. Mend the data, or choose "
            "--on-conflict drop-all or --on-conflict keep-first."
        )
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


def cut_batches(
    requests: Sequence[EditRequest], batch_size: int | None
) -> list[Sequence[EditRequest]]:
    """Requests in their order, `batch_size` at a time; the last batch is what is left.

    Args:
        requests: All of them.
        batch_size: How many at a time; None for all at once.
    """
    size = len(requests) if batch_size is None else batch_size
    return [requests[start : start + size] for start in range(0, len(requests), max(1, size))]
