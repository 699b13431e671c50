"""CounterFact's efficacy, paraphrase and neighborhood success (Eqns 24-26)."""

from typing import ClassVar

from editbench.metrics.probe_metric import ProbeMetric, scored
from editbench.questions import Answers, Question
from editbench.requests import Probe


class Success(ProbeMetric):
    """Does the model find the expected object likelier than the one it competes with?

    ES and PS (Eqns 24, 25) ask whether P[new object] > P[true object] after the rewrite prompt and
    after each paraphrase; NS (Eqn 26) asks whether P[true object] > P[new object] after each
    neighborhood prompt. The dataset writes that into each probe: `expected` is the new object for
    efficacy and paraphrase and the true one for neighborhood, `alternative` is the other.

    The paper compares probabilities of objects. Its implementation, which is followed here,
    compares *length-normalized* log probabilities: the mean over the object's tokens of log p under
    teacher forcing. The two agree where both objects have the same number of tokens. The comparison
    is strict: a tie is no success, whichever object is expected.

    A case's value is the share of its probes that succeed, in percent; a table's value is the mean
    over cases. ``score`` is the harmonic mean of the three means. A probe without an alternative
    (zsRE) is not judged.
    """

    name: ClassVar[str] = "success"
    produces: ClassVar[tuple[str, ...]] = (
        "efficacy_success",
        "paraphrase_success",
        "neighborhood_success",
    )
    aggregates: ClassVar[dict[str, tuple[str, ...]]] = {"score": produces}

    def probe_questions(self, probe: Probe) -> tuple[Question, ...]:
        """How likely are the expected continuation and its competitor?"""
        if probe.alternative is None:
            return ()
        return probe.question(probe.expected), probe.question(probe.alternative)

    def judge(self, probe: Probe, answers: Answers) -> tuple[bool, ...]:
        """One judgement: is the expected continuation the likelier one?"""
        if probe.alternative is None:
            return ()
        expected = scored(answers, probe.question(probe.expected))
        alternative = scored(answers, probe.question(probe.alternative))
        return (expected.mean_log_prob > alternative.mean_log_prob,)
