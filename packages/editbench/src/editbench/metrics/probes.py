"""Rates over probes: success (Eqns 24-26), and accuracy by objects and by tokens (Eqns 21-23)."""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, cast

from editbench.metrics.base import Metric
from editbench.portability import Query
from editbench.questions import Answers, Before, PlainQuestion, Question, Score, ScoreAnswer
from editbench.requests import EditCase, Probe

Ask = Callable[[PlainQuestion], Question]
"""How a question is put: as it is, or `Before` the edit."""


class ProbeMetric(Metric):
    """A rate of passed judgements, per case and kind of probe.

    A subclass says what a probe asks and how its answers are judged; a probe may yield one
    judgement or several. A case's ``<kind>_<suffix>`` is the share, in percent, of all judgements
    on its probes of that kind that passed. A kind without a judgement has no value. A probe with
    conditions counts only if the *unedited* model says what they ask for (`is_likeliest`).

    `produces` is ``<kind>_<suffix>`` in the order efficacy, paraphrase, neighborhood.
    """

    @abstractmethod
    def probe_questions(self, probe: Probe) -> tuple[Question, ...]:
        """What must be asked to judge `probe`; nothing if it cannot be judged."""

    @abstractmethod
    def judge(self, probe: Probe, answers: Answers) -> tuple[bool, ...]:
        """Judgements on a probe for which `probe_questions` names questions."""

    def questions(self, case: EditCase) -> tuple[Question, ...]:
        """The questions of all the case's probes, each once."""
        asked: dict[Question, None] = {}
        for probe in case.probes:
            if own := self.probe_questions(probe):
                asked.update(dict.fromkeys(own))
                for condition in probe.conditions:
                    asked.update(dict.fromkeys(map(Before, condition.questions)))
        return tuple(asked)

    def values(self, case: EditCase, answers: Answers) -> dict[str, float]:
        """Per kind of probe, the percentage of passed judgements."""
        values = {}
        for name in self.produces:
            kind = name.partition("_")[0]
            judgements = [
                judgement
                for probe in case.probes
                if probe.kind == kind
                and self.probe_questions(probe)
                and all(is_likeliest(each, answers, Before) for each in probe.conditions)
                for judgement in self.judge(probe, answers)
            ]
            if judgements:
                values[name] = 100 * sum(judgements) / len(judgements)
        return values


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
        expected = _scored(answers, probe.question(probe.expected))
        alternative = _scored(answers, probe.question(probe.alternative))
        return (expected.mean_log_prob > alternative.mean_log_prob,)


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
        return (all(_scored(answers, probe.question(probe.expected)).argmax),)


class TokenAccuracy(Accuracy):
    """Which share of the expected answer's tokens does the model predict?

    Eqns 21-23 ask whether the argmax over completions *is* the answer. The paper's implementation,
    which is followed here, scores tokens: for each prompt and each token of the answer, is that
    token the argmax after the prompt and the tokens before it (teacher forcing)? A case's value is
    the share of right (prompt, token) pairs among all pairs of a kind, in percent, so a longer
    answer weighs more. Neighborhood is judged against the dataset's answer, not against what the
    unedited model said.

    Where the implementation differs, this does not follow: it decodes the answer token by token,
    tokenizes each piece anew and keeps the first id, which goes wrong where a character
    spans several tokens. Here the answer's own tokens are compared, so values can differ on
    such answers.

    A table's value is the mean over cases. ``accuracy_score`` is the harmonic mean of the three
    means, as in the paper's tables; the implementation's summary does not compute it for zsRE.
    """

    name: ClassVar[str] = "token-accuracy"

    def judge(self, probe: Probe, answers: Answers) -> tuple[bool, ...]:
        """One judgement per token: is it the argmax?"""
        return _scored(answers, probe.question(probe.expected)).argmax


def is_likeliest(query: Query, answers: Answers, ask: Ask) -> bool:
    """Whether every token of one of a query's answers is the most likely one in its place."""
    return any(
        all(cast(ScoreAnswer, answers[ask(question)]).argmax) for question in query.questions
    )


def _scored(answers: Answers, question: Score) -> ScoreAnswer:
    """Look up how likely a continuation was."""
    return cast(ScoreAnswer, answers[question])
