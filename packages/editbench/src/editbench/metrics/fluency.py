"""Generation entropy: does an edited model still write varied text (Eqn 27)?"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, cast

from editbench.metrics.base import Metric
from editbench.metrics.words import split_words
from editbench.questions import Answers, Generate, GenerateAnswer, Question
from editbench.requests import EditCase

N_TOKENS = 100
"""How long generated texts are, in the model's tokens, the prompt's included."""

_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def generation_questions(case: EditCase) -> tuple[Generate, ...]:
    """What must be written to judge how a model writes about a case: one text a prompt."""
    prompts = dict.fromkeys(case.generation_prompts)
    return tuple(Generate(prompt, N_TOKENS, case.request.chat) for prompt in prompts)


def generated_texts(case: EditCase, answers: Answers) -> list[str]:
    """What was written to `generation_questions`, prompts included."""
    return [cast(GenerateAnswer, answers[each]).text for each in generation_questions(case)]


class GenerationEntropy(Metric):
    """How varied is what the model writes, in bits × 100? It falls when a model repeats itself.

    A model that an edit has damaged often says the same few words again and again. From each of
    the case's generation prompts it writes on to 100 tokens, the prompt's included, sampling among
    the five most likely ones. Of each text, prompt included, the entropies H₂ and H₃ of how often
    its bigrams and trigrams of words occur are taken, in bits.

    Eqn 27 is (2/3) H₂ + (4/3) H₃. The paper's implementation, which is followed here so that tables
    compare, takes the *mean* of these two terms, which is half of it, (1/3) H₂ + (2/3) H₃; and
    tables print it × 100. A text of fewer words than an n-gram has entropy 0.

    A case's value is the mean over its texts, a table's value the mean over cases. Words are those
    of `split_words`.
    """

    name: ClassVar[str] = "generation-entropy"
    produces: ClassVar[tuple[str, ...]] = ("generation_entropy",)
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def questions(self, case: EditCase) -> tuple[Question, ...]:
        """What does the model write after each of the generation prompts?"""
        return generation_questions(case)

    def values(self, case: EditCase, answers: Answers) -> dict[str, float]:
        """The mean entropy of the texts, × 100."""
        texts = generated_texts(case, answers)
        if not texts:
            return {}
        total = sum(weighted_entropy(split_words(text)) for text in texts)
        return {self.produces[0]: 100 * total / len(texts)}


def weighted_entropy(words: Sequence[str]) -> float:
    """Half of Eqn 27: the mean of (2/3) H₂ and (4/3) H₃, in bits."""
    terms = [weight * ngram_entropy(words, n) for n, weight in _WEIGHTS.items()]
    return sum(terms) / len(terms)


def ngram_entropy(words: Sequence[str], n: int) -> float:
    """Entropy of how often each n-gram occurs, in bits; 0 if there are none."""
    counts = Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
    n_ngrams = counts.total()
    return sum(count / n_ngrams * math.log2(n_ngrams / count) for count in counts.values())
