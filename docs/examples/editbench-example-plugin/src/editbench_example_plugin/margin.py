"""A metric that says not only whether an object wins, but by how much."""

import math
from typing import ClassVar

from editbench.metrics.base import Metric
from editbench.questions import Answers, Question, Score, ScoreAnswer
from editbench.requests import EditCase


class Margin(Metric):
    """By how much does the expected object lead? In nats per token.

    The lead is the mean log probability of the expected object's tokens, less that of the object it
    competes with: positive where `success` counts a success. A case's value is the mean over its
    probes of one kind; probes without a competitor are left out.
    """

    name: ClassVar[str] = "margin"
    produces: ClassVar[tuple[str, ...]] = ("efficacy_margin", "neighborhood_margin")
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    def questions(self, case: EditCase) -> tuple[Question, ...]:
        """How likely are both objects, after each prompt?"""
        return tuple(
            probe.question(continuation)
            for probe in case.probes
            if probe.alternative is not None
            for continuation in (probe.expected, probe.alternative)
        )

    def values(self, case: EditCase, answers: Answers) -> dict[str, float]:
        """The mean lead, by kind of probe."""
        leads: dict[str, list[float]] = {name: [] for name in self.produces}
        for probe in case.probes:
            name = f"{probe.kind}_margin"
            if probe.alternative is not None and name in leads:
                expected = _mean_log_prob(answers, probe.question(probe.expected))
                alternative = _mean_log_prob(answers, probe.question(probe.alternative))
                leads[name].append(expected - alternative)
        return {name: sum(values) / len(values) for name, values in leads.items() if values}


def _mean_log_prob(answers: Answers, question: Score) -> float:
    answer = answers[question]
    assert isinstance(answer, ScoreAnswer)
    return answer.mean_log_prob
