"""Asking a model what it is checked for, and judging what it says."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from editbench.edits.edit import Edit
from editbench.errors import ConfigError
from editbench.gating.checks import Check
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.models.greedy import write_greedily
from editbench.progress import Progress
from editbench.questions import Read, ScoreAnswer


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one check holds.

    Attributes:
        check: The check.
        holds: Whether it does.
        said: What the model wrote after the prompt.
        before: What it wrote before, where that was asked.
    """

    check: Check
    holds: bool
    said: str
    before: str | None

    @property
    def problem(self) -> str:
        """What is wrong, for people: what was expected, and what came."""
        expected = repr(self.before) if self.check.kind == "unchanged" else self.check.expected
        return f"expected {expected}, got {self.said!r}"


@dataclass(frozen=True, slots=True)
class PerplexityVerdict:
    """Whether held-out text is as likely as it was.

    Attributes:
        before: Perplexity before, the geometric mean over texts.
        now: The same now.
        most: By how many percent it may have risen.
    """

    before: float
    now: float
    most: float

    @property
    def rise(self) -> float:
        """By how many percent it has risen."""
        return 100 * (self.now / self.before - 1)

    @property
    def holds(self) -> bool:
        """Whether that is few enough."""
        return self.rise <= self.most

    @property
    def problem(self) -> str:
        """What is wrong, for people."""
        return (
            f"expected a rise of at most {self.most:g} %, got {self.rise:.3g} %: from "
            f"{self.before:.4g} to {self.now:.4g}"
        )


@dataclass(frozen=True)
class Sides:
    """A model as it is checked, and as it was before.

    Attributes:
        model: The model.
        edit: What is put on it; None where it has all that it is checked for.
        original: The model as it was, where that is another one.
    """

    model: EditableModel
    edit: Edit | None = None
    original: EditableModel | None = None

    @property
    def before(self) -> EditableModel | None:
        """The model as it was; None where nobody knows."""
        return self.original or (None if self.edit is None else self.model)

    def edited(self) -> AbstractContextManager[None]:
        """Have the edit on the model for the length of a ``with`` block."""
        return nullcontext() if self.edit is None else self.edit.applied(self.model)


def judge(sides: Sides, checks: Sequence[Check], report_progress: Progress) -> list[Verdict]:
    """Ask all checks.

    Raises:
        ConfigError: A check compares, and there is nothing to compare with.
        RequestError: A prompt has no token, or is longer than the model takes.
        ModelError: A check is about chat, and the model has no template for it.
    """
    for check in checks:
        if check.kind == "unchanged" and sides.before is None:
            raise ConfigError(
                f"gate: {check.place} compares with the model as it was, and none is given. Give "
                "--edit, or --before with that model."
            )
    comparing = [check for check in checks if check.compares and sides.before is not None]
    report_progress("checks", 0, len(checks) + len(comparing))
    before = {} if sides.before is None else _write(sides.before, comparing)
    report_progress("checks", len(comparing), len(checks) + len(comparing))
    with sides.edited():
        now = _write(sides.model, checks)
    report_progress("checks", len(checks) + len(comparing), len(checks) + len(comparing))
    return [_judge(check, now[check], before.get(check)) for check in checks]


def judge_perplexity(
    sides: Sides, texts: Sequence[str], most: float, report_progress: Progress
) -> PerplexityVerdict:
    """Read held-out texts before and now.

    Raises:
        ConfigError: There is nothing to compare with.
        RequestError: A text has no token that another one comes before.
    """
    if sides.before is None:
        raise ConfigError(
            "gate: --max-perplexity-rise compares with the model as it was, and none is given. "
            "Give --edit, or --before with that model."
        )
    questions = [Read(text) for text in texts]

    def read(model: EditableModel) -> float:
        answers = answer_questions(
            model,
            questions,
            seed=0,
            token_budget=model.memory.tokens,
            on_progress=lambda done, total: report_progress("texts", done, total),
        )
        losses = [
            -answer.mean_log_prob for answer in answers.values() if isinstance(answer, ScoreAnswer)
        ]
        return math.exp(min(sum(losses) / len(losses), 700.0))

    before = read(sides.before)
    with sides.edited():
        return PerplexityVerdict(before, read(sides.model), most)


def _judge(check: Check, said: str, before: str | None) -> Verdict:
    found = any(_occurs(text, said) for text in check.texts)
    if check.kind == "never_says":
        holds = not found
    elif check.kind == "unchanged":
        holds = said == before
    else:
        said_before = before is None or any(_occurs(text, before) for text in check.texts)
        holds = found or (check.kind == "survives" and not said_before and said == before)
    return Verdict(check, holds, said, before)


def _occurs(text: str, said: str) -> bool:
    """Whether a text stands in another as whole words, whatever their case and the space."""
    words = r"\s+".join(map(re.escape, text.casefold().split()))
    return re.search(rf"(?<!\w){words}(?!\w)", said.casefold()) is not None


def _write(model: EditableModel, checks: Sequence[Check]) -> dict[Check, str]:
    """What a model writes, likeliest tokens all, for each number of tokens at once."""
    by_length = defaultdict(list)
    for check in checks:
        by_length[check.n_tokens].append(check)
    return {
        check: text
        for n_tokens, group in by_length.items()
        for check, text in zip(
            group,
            write_greedily(model, [check.question for check in group], n_tokens),
            strict=True,
        )
    }
