"""Keys of ordinary text: a corpus as tokens, a window of texts at a time, run with little padding.

Texts of like length run together, and linear maps and MLPs, which is nearly all the work, leave out
what padding there is. Packing several texts into one row would spare attention the rest, and have
it look at whole rows instead of single texts, which takes more; and it needs every architecture to
keep the texts of a row apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import torch
from torch import Tensor

from editbench.datasets.corpus import Corpus
from editbench.errors import SecondMomentError
from editbench.models.batches import Batch, Padded, batches_of_like_length
from editbench.models.chosen_positions import skipping_padding
from editbench.models.editable import EditableModel
from editbench.models.lean_modules import find_wasteful, made_lean
from editbench.models.out_of_memory import Halving
from editbench.models.token_states import by_token
from memit_core import capture

# Padding that ends a batch; one of less than a sixteenth of the budget may have more.
_TOLERATED_PADDING: Final = 0.03
_SMALL: Final = 16


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


def batch_texts(texts: Sequence[Sequence[int]], token_budget: int) -> Iterator[Batch[int, Padded]]:
    """Group texts of like length, more of like length than as many as there is room for.

    Args:
        texts: Their tokens.
        token_budget: Padded tokens that a batch may hold; a longer text is a batch of its own.

    Yields:
        Batches of indices into `texts`, shortest texts first.
    """

    def is_loose(extent: Padded) -> bool:
        is_padded = extent.n_tokens < (1 - _TOLERATED_PADDING) * extent.n_padded
        return is_padded and extent.n_padded > token_budget // _SMALL

    return batches_of_like_length(texts, token_budget, is_loose)


def read_keys(
    model: EditableModel,
    projections: Mapping[int, str],
    texts: Sequence[Sequence[int]],
    token_budget: int | None = None,
    *,
    n_known: int = 0,
) -> Iterator[tuple[dict[int, Tensor], Tensor]]:
    """Run texts batch by batch, the shortest first.

    Args:
        model: The model.
        projections: By layer, the module whose inputs are the keys.
        texts: Their tokens.
        token_budget: Padded tokens that a batch may hold; None is the model's own.
        n_known: How many texts, the shortest ones, are to be left out.

    Yields:
        For each layer the keys of a batch's tokens, `[n_tokens, d_key]`, and which text each token
        is of, `[n_tokens]`, on the CPU.

    Raises:
        DeviceMemoryError: There is not enough memory for a single text.
    """
    wasteful = find_wasteful(model)
    layers = range(max(projections, default=-1) + 1)

    def read(batch: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
        inputs = model.batch([texts[index] for index in batch])
        mask = inputs["attention_mask"]
        with (
            torch.no_grad(),
            made_lean(wasteful),
            skipping_padding(model, mask, layers),
            capture(model.model, inputs_of=list(projections.values()), stop=True) as seen,
        ):
            model.model(**inputs, use_cache=False)
        real = mask.bool().flatten()
        owners = torch.tensor(batch).repeat_interleave(mask.sum(dim=1).cpu())
        keys = {}
        for layer, projection in projections.items():
            found = by_token(seen.inputs[projection])
            # An MLP that skips padding has its own tokens alone, in the same order.
            skipped = len(found) == len(owners)
            keys[layer] = found if skipped else found[real.to(found.device)]
        return keys, owners

    halving = Halving(f"keys of ordinary text on '{model.name}'")
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))[n_known:]
    for batch in batch_texts(
        [texts[index] for index in order], token_budget or model.memory.tokens
    ):
        yield from halving.run([order[place] for place in batch.rows], read)
