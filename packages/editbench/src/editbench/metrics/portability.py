"""Does it follow? What a model says where an edit has consequences."""

from collections.abc import Callable, Iterator
from typing import ClassVar, cast

from editbench.metrics.base import Metric
from editbench.metrics.generation_match import contains, probe_text
from editbench.metrics.probes import Ask, is_likeliest
from editbench.portability import PortabilityProbe, Query
from editbench.questions import (
    Answers,
    Before,
    PlainQuestion,
    Question,
    WriteAnswer,
)
from editbench.requests import EditCase

Judge = Callable[[Query, Answers, Ask], bool]


class Portability(Metric):
    """Does the model answer what follows from the edit: over further facts, by another name?

    A query is answered right if the model says one of its answers, under whichever name. For
    ``portability_accuracy`` and the rows of the kinds it says it if every token is the most likely
    one in its place (teacher forcing); for ``portability_generation`` if the text that it writes by
    itself contains it (`GenerationMatch`).

    A probe is passed if one of its queries is, or all of them where it says so (MQuAKE asks a
    question in three wordings, Zhong et al. 2023; RippleEdits joins queries by OR and AND, Cohen et
    al. 2024, section 4). It counts only if the *unedited* model answers all its conditions right,
    in the same way: nobody can infer from a fact that he does not know.

    A case's value is the share of its probes that are passed, in percent, over all kinds and for
    each; a table's value is the mean over cases.
    """

    name: ClassVar[str] = "portability"
    produces: ClassVar[tuple[str, ...]] = (
        "portability_accuracy",
        "portability_generation",
        "reasoning_accuracy",
        "aliasing_accuracy",
        "reversal_accuracy",
        "multi_hop_accuracy",
    )

    def questions(self, case: EditCase) -> tuple[Question, ...]:
        """What does the model say; and, without the edit, to the conditions?"""
        return tuple(dict.fromkeys(_find_questions(case)))

    def values(self, case: EditCase, answers: Answers) -> dict[str, float]:
        """The share of probes that are passed, in percent: all, and those of each kind."""
        passed: dict[str, list[bool]] = {name: [] for name in self.produces}
        for probe in case.portability:
            if (judgement := judge_probe(probe, answers, is_likeliest)) is not None:
                passed["portability_accuracy"].append(judgement)
                passed[f"{probe.kind}_accuracy"].append(judgement)
            if (judgement := judge_probe(probe, answers, is_written)) is not None:
                passed["portability_generation"].append(judgement)
        return {name: 100 * sum(each) / len(each) for name, each in passed.items() if each}


def _find_questions(case: EditCase) -> Iterator[Question]:
    for probe in case.portability:
        for query in probe.queries:
            yield from _questions_of(query)
        for condition in probe.conditions:
            yield from map(Before, _questions_of(condition))


def _questions_of(query: Query) -> tuple[PlainQuestion, ...]:
    return (*query.questions, probe_text(query))


def judge_probe(probe: PortabilityProbe, answers: Answers, judge: Judge) -> bool | None:
    """Whether a probe is passed; None if it does not count.

    Args:
        probe: The probe.
        answers: To all that `Portability` asks about it.
        judge: What a right answer is: `is_likeliest` or `is_written`.
    """
    if not all(judge(condition, answers, Before) for condition in probe.conditions):
        return None
    joined = all if probe.needs_all else any
    return joined(judge(query, answers, lambda question: question) for query in probe.queries)


def is_written(query: Query, answers: Answers, ask: Ask) -> bool:
    """Whether what the model writes behind a query by itself has one of its answers in it."""
    text = cast(WriteAnswer, answers[ask(probe_text(query))]).text
    return any(contains(text, answer) for answer in query.answers)
