"""Specificity that bites: neighbors with the edited fact in sight, and whole distributions."""

import math
from typing import ClassVar, cast

from editbench.metrics.base import Metric, TextMetric
from editbench.models.joining import needs_space
from editbench.questions import Answers, Diverge, DivergeAnswer, Question, Score, ScoreAnswer
from editbench.requests import EditCase, EditRequest


class CounterFactPlus(Metric):
    """Do neighbors stay when the edited sentence stands before them?

    CounterFact+ (Hoelscher-Obermaier et al. 2023): the prompt is the edited fact as a sentence,
    then the neighbor's prompt: ``{prompt} {new object}. {neighbor's prompt}``. An edit that answers
    to the subject's mere presence shows there.

    ``neighborhood_plus_success`` is the share of neighbors whose true object is likelier than the
    new one, compared as `success` does, by means over tokens of log p. ``neighborhood_plus_margin``
    is the mean of P(true) - P(new), × 100, P being exp of these means. A probe without an
    alternative is not judged.
    """

    name: ClassVar[str] = "counterfact-plus"
    produces: ClassVar[tuple[str, ...]] = ("neighborhood_plus_success", "neighborhood_plus_margin")
    bounds: ClassVar[tuple[float, float]] = (-100.0, 100.0)

    def questions(self, case: EditCase) -> tuple[Question, ...]:
        """How likely are the true and the new object of each neighbor?"""
        return tuple(dict.fromkeys(each for pair in plus_questions(case) for each in pair))

    def values(self, case: EditCase, answers: Answers) -> dict[str, float]:
        """The share of neighbors that stay, and by how much, in percent."""
        pairs = [
            [cast(ScoreAnswer, answers[each]).mean_log_prob for each in pair]
            for pair in plus_questions(case)
        ]
        if not pairs:
            return {}
        n_held = sum(true > new for true, new in pairs)
        margin = sum(math.exp(true) - math.exp(new) for true, new in pairs)
        amounts = (100 * n_held / len(pairs), 100 * margin / len(pairs))
        return dict(zip(self.produces, amounts, strict=True))


class Divergence(Metric, TextMetric):
    """How far has the edit moved what the model says next, where it should say the same?

    KL(before ‖ after) = Σ p log(p / q) over the whole vocabulary, in nats, p being the unedited
    model's distribution of the next token and q the edited one's. ``neighborhood_divergence`` is
    its mean over a case's neighborhood prompts, behind their last token; ``text_divergence`` its
    mean over all places of a held-out text that `perplexity` is over. Lower is better; 0 is no
    change, and that of the unedited model.
    """

    name: ClassVar[str] = "divergence"
    produces: ClassVar[tuple[str, ...]] = ("neighborhood_divergence", "text_divergence")
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)
    higher_is_better: ClassVar[bool] = False

    def questions(self, unit: EditCase | str) -> tuple[Question, ...]:
        """How far is the next token's distribution, behind each neighbor or all over a text?"""
        if isinstance(unit, str):
            return (Diverge(unit, everywhere=True),)
        probes = (probe for probe in unit.probes if probe.kind == "neighborhood")
        return tuple(dict.fromkeys(Diverge(probe.prompt, chat=probe.chat) for probe in probes))

    def values(self, unit: EditCase | str, answers: Answers) -> dict[str, float]:
        """The mean over neighbors, or over a text's places."""
        found = [cast(DivergeAnswer, answers[each]).mean for each in self.questions(unit)]
        name = self.produces[isinstance(unit, str)]
        return {name: sum(found) / len(found)} if found else {}


def plus_questions(case: EditCase) -> list[tuple[Score, Score]]:
    """For each neighbor behind the edited sentence: the true object, and the new one."""
    sentence = write_sentence(case.request)
    return [
        (
            Score(f"{sentence} {probe.prompt}", probe.expected, probe.joiner, probe.chat),
            Score(f"{sentence} {probe.prompt}", probe.alternative, probe.joiner, probe.chat),
        )
        for probe in case.probes
        if probe.kind == "neighborhood" and probe.alternative is not None
    ]


def write_sentence(request: EditRequest) -> str:
    """The fact as a sentence: prompt, object, period."""
    joiner = request.joiner
    if joiner is None:
        joiner = " " if needs_space(request.text, request.target) else ""
    return f"{request.text}{joiner}{request.target.strip()}."
