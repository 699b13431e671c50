"""Perplexity of held-out text: what has an edit done to everything that it was not about?"""

import math
from typing import ClassVar, cast

from editbench.metrics.base import Mean, TextMetric
from editbench.questions import Answers, Question, Read, ScoreAnswer

_MAX_LOSS = 700.0  # exp(710) is no float any more


class Perplexity(TextMetric):
    """How surprised is the model by ordinary text? Compare with the unedited model's value.

    A text's value is exp of the mean of −log p over its tokens, each given all before it; where the
    tokenizer puts nothing before a text, its first token does not count. A table's value is the
    *geometric* mean over texts, exp of the mean of their mean −log p, so that every text weighs the
    same, whatever its length. The lower the better; 1 is perfect knowledge of the text.
    """

    name: ClassVar[str] = "perplexity"
    produces: ClassVar[tuple[str, ...]] = ("perplexity",)
    mean: ClassVar[Mean] = "geometric"
    bounds: ClassVar[tuple[float, float]] = (1.0, math.inf)
    higher_is_better: ClassVar[bool] = False

    def questions(self, text: str) -> tuple[Question, ...]:
        """How likely is each token of the text?"""
        return (Read(text),)

    def values(self, text: str, answers: Answers) -> dict[str, float]:
        """The text's perplexity; of a model in ruins, at most exp(700)."""
        loss = -cast(ScoreAnswer, answers[Read(text)]).mean_log_prob
        return {self.produces[0]: math.exp(min(loss, _MAX_LOSS))}
