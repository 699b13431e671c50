"""Does it follow? What a model says where an edit has consequences."""

from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, cast

from editbench.metrics.base import Metric
from editbench.questions import Answers, Before, Question, Score, ScoreAnswer
from editbench.requests import EditCase, PortabilityProbe, Query


class Portability(Metric):
    """Does the model answer what follows from the edit: over further facts, by another name?

    A query is answered right if one of its answers, whichever name of it, is what the model says:
    every token of it the most likely one in its place (teacher forcing). A probe is passed if one
    of its queries is, or all of them where it says so (MQuAKE asks a question in three wordings,
    Zhong et al. 2023; RippleEdits joins queries by OR and AND, Cohen et al. 2024, section 4). It
    counts only if the *unedited* model answers all its conditions right: nobody can infer from a
    fact that he does not know.

    A case's value is the share of its probes that are passed, in percent, over all kinds and for
    each; a table's value is the mean over cases.
    """

    name: ClassVar[str] = "portability"
    produces: ClassVar[tuple[str, ...]] = (
        "portability_accuracy",
        "reasoning_accuracy",
        "aliasing_accuracy",
        "reversal_accuracy",
        "multi_hop_accuracy",
    )

    def questions(self, case: EditCase) -> tuple[Question, ...]:
        """How likely are the answers; and, without the edit, those to the conditions?"""
        return tuple(dict.fromkeys(_find_questions(case.portability)))

    def values(self, case: EditCase, answers: Answers) -> dict[str, float]:
        """The share of probes that are passed, in percent: all, and those of each kind."""
        passed: dict[str, list[bool]] = {name: [] for name in self.produces}
        for probe in case.portability:
            if all(_is_right(each, answers, Before) for each in probe.conditions):
                joined = all if probe.needs_all else any
                judgement = joined(_is_right(query, answers) for query in probe.queries)
                passed[self.produces[0]].append(judgement)
                passed[f"{probe.kind}_accuracy"].append(judgement)
        return {name: 100 * sum(each) / len(each) for name, each in passed.items() if each}


def _find_questions(probes: Iterable[PortabilityProbe]) -> Iterator[Question]:
    for probe in probes:
        for query in probe.queries:
            yield from query.questions
        for condition in probe.conditions:
            yield from map(Before, condition.questions)


def _is_right(
    query: Query, answers: Answers, ask: Callable[[Score], Question] = lambda question: question
) -> bool:
    return any(all(cast(ScoreAnswer, answers[ask(each)]).argmax) for each in query.questions)
