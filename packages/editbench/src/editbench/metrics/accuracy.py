"""Whole-object accuracy: would greedy decoding write the expected object?"""

from typing import ClassVar

from editbench.metrics.probe_metric import ProbeMetric, scored
from editbench.questions import Answers, Question
from editbench.requests import Probe


class Accuracy(ProbeMetric):
    """Is *every* token of the expected object the most likely one at its place?

    Asked under teacher forcing, which for "all tokens right" comes to the same as greedy decoding:
    if each token is the argmax after the tokens before it, greedy decoding writes exactly these.
    The expected object is the new one for efficacy and paraphrase, the true one for neighborhood.

    This is the accuracy that the reference stores next to CounterFact's success. The paper prints
    none for CounterFact; for zsRE, where its Eqns 21-23 demand that the argmax over
    completions be the object, the implementation counts single tokens instead: see `TokenAccuracy`.

    A case's value is the share of its probes that are right, in percent; a table's value is the
    mean over cases. ``accuracy_score`` is the harmonic mean of the three means.
    """

    name: ClassVar[str] = "accuracy"
    produces: ClassVar[tuple[str, ...]] = (
        "efficacy_accuracy",
        "paraphrase_accuracy",
        "neighborhood_accuracy",
    )
    aggregates: ClassVar[dict[str, tuple[str, ...]]] = {"accuracy_score": produces}

    def probe_questions(self, probe: Probe) -> tuple[Question, ...]:
        """How likely are the tokens of the expected continuation?"""
        return (probe.question(probe.expected),)

    def judge(self, probe: Probe, answers: Answers) -> tuple[bool, ...]:
        """One judgement: is every token of the expected continuation the argmax?"""
        return (all(scored(answers, probe.question(probe.expected)).argmax),)
