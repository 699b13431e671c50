"""From edit cases to what a hypernetwork is trained on."""

import random
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from editbench.errors import DataError, RequestError
from editbench.models.tokens import Tokens
from editbench.questions import Score
from editbench.requests import EditCase, EditRequest, Probe


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """A prompt with its continuation in tokens.

    Attributes:
        token_ids: Prompt and continuation, less the continuation's last token.
        target_ids: The continuation's tokens.
        start: Position at which the first of them is predicted; the others follow.
    """

    token_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    start: int

    @classmethod
    def of(cls, tokens: Tokens, question: Score) -> "ExampleRow":
        """Tokenize a prompt and its continuation."""
        prompt_ids, target_ids = tokens.encode_question(question)
        return cls((*prompt_ids, *target_ids[:-1]), tuple(target_ids), len(prompt_ids) - 1)


@dataclass(frozen=True, slots=True)
class Example:
    """What is drawn from one case.

    Attributes:
        request: The edit.
        equivalents: Prompts behind which the target is wanted.
        neighbors: Prompts behind which nothing is to change.
    """

    request: EditRequest
    equivalents: tuple[ExampleRow, ...]
    neighbors: tuple[ExampleRow, ...]


def select_trainable(cases: Sequence[EditCase], source: str) -> list[EditCase]:
    """Leave out the cases that a hypernetwork cannot be trained on, with a warning.

    Training asks for a paraphrase, so that edits learn to generalize, and for a neighbor, so that
    they learn to stay specific. `source` is the dataset's name, for the message.

    Raises:
        DataError: No case has both.
    """
    lacking = {
        kind: [case.request.case_id for case in cases if not _probes(case, kind)]
        for kind in ("paraphrase", "neighborhood")
    }
    found = ", ".join(
        f"{len(ids)} lack a {kind} probe (first: '{ids[0]}')"
        for kind, ids in lacking.items()
        if ids
    )
    left_out = {case_id for ids in lacking.values() for case_id in ids}
    trainable = [case for case in cases if case.request.case_id not in left_out]
    if not trainable:
        raise DataError(
            f"train mend on '{source}': no case has both a paraphrase and a neighborhood probe, "
            f"got {len(cases)} cases, of which {found or 'none is there'}. Add the probes, or "
            "choose another dataset."
        )
    if left_out:
        warnings.warn(
            f"train mend on '{source}': {len(left_out)} of {len(cases)} cases are left out: "
            f"{found}",
            stacklevel=3,
        )
    return trainable


def draw_batch(
    cases: Sequence[EditCase], n_edits: int, group_size: int, rng: random.Random
) -> list[EditCase]:
    """Draw cases, none twice; of each group of `group_size`, no two are about one subject."""
    chosen: list[EditCase] = []
    group: set[str] = set()
    for index in rng.sample(range(len(cases)), len(cases)):
        if len(chosen) % group_size == 0:
            group = set()
        subject = cases[index].request.subject
        if subject not in group:
            chosen.append(cases[index])
            group.add(subject)
        if len(chosen) == n_edits:
            break
    return chosen


def draw_example(tokens: Tokens, case: EditCase, n_neighbors: int, rng: random.Random) -> Example:
    """Draw one of a case's equivalent prompts, the request's own included, and some neighbors."""
    equivalents, neighbors = _ask_equivalents(case), _ask_neighbors(case)
    return Example(
        case.request,
        equivalents=(ExampleRow.of(tokens, rng.choice(equivalents)),),
        neighbors=tuple(
            ExampleRow.of(tokens, question)
            for question in rng.sample(neighbors, min(n_neighbors, len(neighbors)))
        ),
    )


def check_cases(tokens: Tokens, cases: Iterable[EditCase]) -> None:
    """Find out before any training whether a model has the tokens of all that may be drawn.

    Raises:
        RequestError: A prompt or continuation cannot be put into tokens.
    """
    for case in cases:
        for question in (*_ask_equivalents(case), *_ask_neighbors(case)):
            try:
                tokens.encode_question(question)
            except RequestError as error:
                raise RequestError(f"request '{case.request.case_id}': {error}") from error


def _ask_equivalents(case: EditCase) -> list[Score]:
    request = case.request
    paraphrases = _probes(case, "paraphrase")
    return [request.question, *(probe.question(request.target) for probe in paraphrases)]


def _ask_neighbors(case: EditCase) -> list[Score]:
    return [probe.question(probe.expected) for probe in _probes(case, "neighborhood")]


def _probes(case: EditCase, kind: str) -> list[Probe]:
    return [probe for probe in case.probes if probe.kind == kind]
