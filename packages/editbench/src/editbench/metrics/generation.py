"""What an edited model writes: how varied it is (Eqn 27), and how like texts on the new object."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

from editbench.errors import EditbenchError
from editbench.metrics.base import Metric
from editbench.questions import Answers, Generate, GenerateAnswer, Question
from editbench.requests import EditCase

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

N_TOKENS = 100
"""How long generated texts are, in the model's tokens, the prompt's included."""

_WEIGHTS = {2: 2 / 3, 3: 4 / 3}

_ENDING = r"['’](?:s|m|d|ll|re|ve)\b"
# In this order: a number, with separators between its digits; an ending that is a word of its own;
# a word up to such an ending, hyphens and apostrophes inside it included; one and the same
# punctuation mark, any number of times.
_TOKEN = re.compile(
    r"\d+(?:[.,:]\d+)*(?!\w)"
    rf"|n['’]t\b|{_ENDING}"
    rf"|\w+?(?=n['’]t\b)|\w+(?:(?!{_ENDING})[-'’]\w+)*"
    r"|([^\w\s])\1*",
    flags=re.IGNORECASE,
)


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


def split_words(text: str) -> list[str]:
    """Split a text into words and punctuation marks.

    The rule is meant to count as `nltk.word_tokenize` does, without the data that that needs:

    - A word is a run of letters, digits and underscores; hyphens and apostrophes inside a word
      belong to it.
    - A number keeps the points, commas and colons between its digits.
    - The endings ``n't``, ``'s``, ``'m``, ``'d``, ``'ll``, ``'re`` and ``'ve`` are tokens of their
      own.
    - Any other character but white space is a token of its own; repetitions of it (``...``, ``--``)
      are one token.

    Where the two differ, it is nearly always in a period: nltk keeps it at abbreviations
    and wherever a sentence does not seem to end; here it is always a token. Case is kept.
    """
    return [match.group() for match in _TOKEN.finditer(text)]


class ReferenceScore(Metric):
    """How alike are what the model writes and texts about the new object, as cosine × 100?

    The texts that the model writes from a case's generation prompts, joined, are compared with the
    case's reference texts, joined: texts about other subjects that really have the new object.
    Each side is a TF-IDF vector, as scikit-learn makes them by default; the value is the cosine of
    the two, × 100 as tables print it.

    The reference counts in how many texts a word occurs over the snippets of all of CounterFact.
    Here it is counted over all distinct reference texts of the dataset. Either way it does
    not depend on which cases are edited.

    A case's value is one cosine, a table's value the mean over cases. A case without generation
    prompts or without reference texts has none.
    """

    name: ClassVar[str] = "reference-score"
    produces: ClassVar[tuple[str, ...]] = ("reference_score",)

    def __init__(self, similarity: "TextSimilarity | None" = None) -> None:
        """Make the metric; `fitted` makes one that can tell how alike a dataset's texts are."""
        self._similarity = similarity

    def fitted(self, cases: Sequence[EditCase]) -> "ReferenceScore":
        """The metric whose words are counted in the reference texts of `cases`."""
        texts = dict.fromkeys(text for case in cases for text in case.reference_texts)
        return ReferenceScore(TextSimilarity(tuple(texts)))

    def questions(self, case: EditCase) -> tuple[Question, ...]:
        """What does the model write after each of the generation prompts?"""
        return generation_questions(case) if case.reference_texts else ()

    def values(self, case: EditCase, answers: Answers) -> dict[str, float]:
        """The cosine of written and reference texts, × 100."""
        if not self.questions(case):
            return {}
        if self._similarity is None:
            raise EditbenchError(
                "metric 'reference-score': it does not know the dataset's words yet. Use "
                "ReferenceScore().fitted(dataset.cases())."
            )
        written = generated_texts(case, answers)
        cosine = self._similarity.compare(written, case.reference_texts)
        return {self.produces[0]: 100 * cosine}


class TextSimilarity:
    """Cosines of TF-IDF vectors, with words weighted by how few texts of a corpus have them.

    Words, weights and vectors are those of scikit-learn's `TfidfVectorizer` by default: words of
    two or more letters or digits in lower case, weight ln((1 + n) / (1 + n_with_it)) + 1; a word
    that the corpus lacks does not count. The corpus is read when something is first compared.
    """

    def __init__(self, corpus: Iterable[str]) -> None:
        """Say in which texts words are counted; one has a word once something is compared."""
        self._corpus = corpus
        self._vectors: dict[tuple[str, ...], Any] = {}

    def compare(self, written: Sequence[str], reference: tuple[str, ...]) -> float:
        """Cosine of two groups of texts, each joined by spaces; 0 if either has no known word."""
        if reference not in self._vectors:  # which many cases share
            self._vectors[reference] = self._vectorizer.transform([" ".join(reference)])
        vector = self._vectorizer.transform([" ".join(written)])
        cosine = float(vector.multiply(self._vectors[reference]).sum())  # both have length 1 or 0
        return min(cosine, 1.0)  # but for a rounding

    @cached_property
    def _vectorizer(self) -> "TfidfVectorizer":
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer().fit(self._corpus)
