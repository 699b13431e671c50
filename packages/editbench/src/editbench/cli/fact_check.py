"""``edit --check``: for which facts the model says the target by itself, and what it says else."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from editbench.requests import EditRequest

if TYPE_CHECKING:
    from editbench.editors.base import EditorConfig
    from editbench.models.editable import EditableModel

_N_SHOWN = 10
_N_TOKENS = 8  # of what is said, at least
_N_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Said:
    """What a model says after the prompt of a fact.

    Attributes:
        is_target: Whether every token of the target is its first choice.
        text: How it goes on by itself; empty where that is the target.
    """

    is_target: bool
    text: str = ""


def ask_facts(model: "EditableModel", requests: Sequence[EditRequest]) -> list[Said]:
    """Let a model go on after the facts' prompts, always with the likeliest token."""
    from editbench.models.answering import answer_questions
    from editbench.models.generation import generate_texts
    from editbench.questions import Generate, Score, ScoreAnswer

    questions = [Score(request.text, request.target) for request in requests]
    answers = answer_questions(model, questions, seed=0, token_budget=model.token_budget)
    said: dict[int, Said] = {}
    openings: dict[int, Generate] = {}
    for index, (request, question) in enumerate(zip(requests, questions, strict=True)):
        answer = answers[question]
        assert isinstance(answer, ScoreAnswer)
        if all(answer.argmax):
            said[index] = Said(True)
        else:
            n_prompt = len(model.tokens.encode(request.text))
            n_tokens = n_prompt + max(len(answer.argmax), _N_TOKENS)
            if model.max_positions is not None:
                n_tokens = min(n_tokens, model.max_positions)
            openings[index] = Generate(request.text, n_tokens)
    texts = generate_texts(
        model,
        list(dict.fromkeys(openings.values())),
        0,
        model.token_budget,
        lambda _: None,
        top_k=1,
    )
    for index, opening in openings.items():
        prompt = model.tokens.decode(model.tokens.encode(opening.prompt))
        said[index] = Said(False, texts[opening].text[len(prompt) :])
    return [said[index] for index in range(len(requests))]


def describe_check(
    requests: Sequence[EditRequest], before: Sequence[Said], after: Sequence[Said]
) -> Iterator[str]:
    """How many facts the model says, and what it says instead of the first of the others."""
    n_before, n_after = (sum(each.is_target for each in said) for said in (before, after))
    yield (
        f"The model's own continuation is the target for {n_after} of {len(requests)} facts; "
        f"before the edit, for {n_before}."
    )
    failed = [pair for pair in zip(requests, after, strict=True) if not pair[1].is_target]
    for request, said in failed[:_N_SHOWN]:
        yield (
            f"  Not {request.case_id}: after {_show(request.text, from_end=True)} it says "
            f"{_show(said.text)} instead of {_show(request.target)}."
        )
    if len(failed) > _N_SHOWN:
        yield f"  Nor {len(failed) - _N_SHOWN} more."


def advise_sharing(
    editor: str, config: "EditorConfig", requests: Sequence[EditRequest]
) -> str | None:
    """What to say where several facts are about one subject, and an editor could share an offset.

    Args:
        editor: The editor's name.
        config: Its configuration.
        requests: The facts.
    """
    if getattr(config, "share_subjects", True):
        return None
    subject, n_facts = Counter(request.subject for request in requests).most_common(1)[0]
    if n_facts < 2:
        return None
    return (
        f"{n_facts} facts are about {subject!r}. Facts about one subject come out better with "
        f"--set {editor}.share_subjects=true."
    )


def _show(text: str, *, from_end: bool = False) -> str:
    line = " ".join(text.split())
    if len(line) <= _N_SHOWN_CHARACTERS:
        return repr(line)
    rest = line[-_N_SHOWN_CHARACTERS:] if from_end else line[:_N_SHOWN_CHARACTERS]
    return repr(f"…{rest}" if from_end else f"{rest}…")
