"""zsRE's efficacy, paraphrase and specificity (Eqns 21-23), counted in tokens."""

from typing import ClassVar

from editbench.metrics.accuracy import Accuracy
from editbench.metrics.probe_metric import scored
from editbench.questions import Answers
from editbench.requests import Probe


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
        return scored(answers, probe.question(probe.expected)).argmax
