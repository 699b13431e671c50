"""Reference score: does an edited model write about a subject as if the new fact were true?"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from editbench.errors import EditbenchError
from editbench.metrics.base import Metric
from editbench.metrics.fluency import generated_texts, generation_questions
from editbench.questions import Answers, Question
from editbench.requests import EditCase

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer


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
        """Make the metric.

        Args:
            similarity: What tells how alike texts are; `fitted` makes one for a dataset.
        """
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
        """Say in which texts words are counted.

        Args:
            corpus: The texts; at least one of them has a word by the time something is compared.
        """
        self._corpus = corpus
        self._vectors: dict[tuple[str, ...], Any] = {}

    def compare(self, written: Sequence[str], reference: tuple[str, ...]) -> float:
        """Cosine of two groups of texts, each joined by spaces; 0 if either has no known word.

        Args:
            written: Texts.
            reference: Other texts; their vector is kept, since many cases share them.
        """
        if reference not in self._vectors:
            self._vectors[reference] = self._vectorizer.transform([" ".join(reference)])
        vector = self._vectorizer.transform([" ".join(written)])
        cosine = float(vector.multiply(self._vectors[reference]).sum())  # both have length 1 or 0
        return min(cosine, 1.0)  # but for a rounding

    @cached_property
    def _vectorizer(self) -> "TfidfVectorizer":
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer().fit(self._corpus)
