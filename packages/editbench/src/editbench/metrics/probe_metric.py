"""The shape that all rates over probes share: judge each probe, then average by kind."""

from abc import abstractmethod
from typing import cast

from editbench.metrics.base import Metric
from editbench.questions import Answers, Question, Score, ScoreAnswer
from editbench.requests import EditCase, Probe


def scored(answers: Answers, question: Score) -> ScoreAnswer:
    """Look up how likely a continuation was."""
    return cast(ScoreAnswer, answers[question])


class ProbeMetric(Metric):
    """A rate of passed judgements, per case and kind of probe.

    A subclass says what a probe asks and how its answers are judged; a probe may yield one
    judgement or several. A case's ``<kind>_<suffix>`` is the share, in percent, of all judgements
    on its probes of that kind that passed. A kind without a judgement has no value.

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
        asked = (question for probe in case.probes for question in self.probe_questions(probe))
        return tuple(dict.fromkeys(asked))

    def values(self, case: EditCase, answers: Answers) -> dict[str, float]:
        """Per kind of probe, the percentage of passed judgements."""
        values = {}
        for name in self.produces:
            kind = name.partition("_")[0]
            judgements = [
                judgement
                for probe in case.probes
                if probe.kind == kind and self.probe_questions(probe)
                for judgement in self.judge(probe, answers)
            ]
            if judgements:
                values[name] = 100 * sum(judgements) / len(judgements)
        return values
