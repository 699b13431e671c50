"""A corpus as tokens: cut to length, shared out among shards, a window of texts at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from editbench.datasets.corpus import Corpus
from editbench.errors import SecondMomentError
from editbench.models.editable import EditableModel


@dataclass(frozen=True)
class Shard:
    """A share of a corpus.

    Every shard reads and counts all texts and takes each `n_shards`-th of them, so that together
    they take exactly the tokens that are taken without shards.

    Attributes:
        index: Which one, from 0.
        n_shards: How many there are.

    Raises:
        SecondMomentError: There is no such shard.
    """

    index: int
    n_shards: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.n_shards:
            raise SecondMomentError(
                f"second moments: no such shard, got {self.index + 1}/{self.n_shards}; expected "
                "one from 1/N to N/N."
            )


WHOLE: Final = Shard(0, 1)


class CorpusReader:
    """Reads texts until `n_tokens` tokens are read, of all shards together; the last text is cut.

    Args:
        model: Whose tokenizer cuts the texts up (with BOS where it adds one).
        corpus: Ordinary text.
        n_tokens: When to end.
        max_length: Tokens that a text is cut to.
        shard: Which of the texts to hand out.

    Attributes:
        n_texts: Texts read so far, of all shards.
        n_tokens: Tokens read so far, of all shards. With `n_texts`, what a reader has to know to go
            on where another one was.
    """

    def __init__(
        self, model: EditableModel, corpus: Corpus, n_tokens: int, max_length: int, shard: Shard
    ) -> None:
        self._model = model
        self._corpus = corpus
        self._n_wanted = n_tokens
        self._max_length = max_length
        self._shard = shard
        self._texts: Iterator[str] | None = None
        self.n_texts = 0
        self.n_tokens = 0

    def take(self, n_tokens: int) -> list[list[int]]:
        """The shard's next texts, of at least `n_tokens` tokens or all that are left."""
        if self._texts is None:
            self._texts = islice(self._corpus.texts(), self.n_texts, None)
        taken: list[list[int]] = []
        n_taken = 0
        while n_taken < n_tokens and self.n_tokens < self._n_wanted:
            text = next(self._texts, None)
            if text is None:
                break
            longest = min(self._max_length, self._n_wanted - self.n_tokens)
            ids = self._model.tokens.encode(text)[:longest]
            if self.n_texts % self._shard.n_shards == self._shard.index and ids:
                taken.append(ids)
                n_taken += len(ids)
            self.n_texts += 1
            self.n_tokens += len(ids)
        return taken
