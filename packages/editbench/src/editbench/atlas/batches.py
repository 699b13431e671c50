"""Documents into training batches that know where subjects and objects are."""

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from editbench.atlas.text import Document
from editbench.atlas.tokenizer import END_OF_TEXT_ID
from editbench.atlas.world import World


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Rows of packed documents; every field is ``[n_rows, width]``.

    Attributes:
        tokens: Token ids; documents are separated by the end-of-text token.
        weights: Weight in the loss of predicting each token; 0 on padding.
        mentions: Which mention of a subject a token belongs to, counted from 1; 0 is none.
        last_of: Index of the subject whose mention ends in this token; -1 elsewhere.
    """

    tokens: Tensor
    weights: Tensor
    mentions: Tensor
    last_of: Tensor

    def on(self, device: torch.device) -> "TrainingBatch":
        """The same batch on a device."""
        parts = (self.tokens, self.weights, self.mentions, self.last_of)
        return TrainingBatch(*(part.to(device) for part in parts))

    def allow_attention(self, *, bottleneck: bool) -> Tensor | None:
        """Say which keys each query may attend to, ``[n_rows, 1, width, width]``; None is causal.

        With the bottleneck, all that follows a mention sees only its last token, so that whatever
        is to be known about a subject has to be gathered there.
        """
        if not bottleneck:
            return None
        width = self.tokens.shape[1]
        hidden_key = (self.mentions > 0) & (self.last_of < 0)
        same_mention = self.mentions[:, :, None] == self.mentions[:, None, :]
        causal = torch.ones(width, width, dtype=torch.bool, device=self.tokens.device).tril()
        return (causal & (~hidden_key[:, None, :] | same_mention))[:, None]


class BatchSource:
    """An endless, seeded stream of batches; every epoch words the facts anew.

    Args:
        world: What to train on.
        tokenizer: Its tokenizer.
        n_rows: Rows a batch.
        width: Tokens a row; longer documents are cut.
        object_weight: Weight in the loss of the tokens of objects; all others weigh 1.
        seed: Seeds wording and order.
    """

    def __init__(
        self,
        world: World,
        tokenizer: PreTrainedTokenizerFast,
        *,
        n_rows: int,
        width: int,
        object_weight: float,
        seed: int,
    ) -> None:
        self._world = world
        self._tokenizer = tokenizer
        self._n_rows = n_rows
        self._width = width
        self._object_weight = object_weight
        self._rng = random.Random(f"atlas/{seed}/batches")
        self._index_of = {subject.name: index for index, subject in enumerate(world.subjects)}

    def epoch(self, *, among: Collection[str] | None = None) -> Iterator[TrainingBatch]:
        """Yield the full batches of one epoch.

        Args:
            among: Names of the subjects to write about; None is everyone.
        """
        documents = list(self._world.documents(self._rng, among=among))
        rows = list(self._pack(documents))
        self._rng.shuffle(rows)
        for start in range(0, len(rows) - self._n_rows + 1, self._n_rows):
            columns = zip(*rows[start : start + self._n_rows], strict=True)
            tokens, weights, mentions, last_of = (torch.tensor(column) for column in columns)
            yield TrainingBatch(tokens, weights, mentions, last_of)

    def _pack(
        self, documents: Sequence[Document]
    ) -> Iterator[tuple[list[int], list[float], list[int], list[int]]]:
        encoded = self._tokenizer(
            [document.text for document in documents], return_offsets_mapping=True
        )
        tokens: list[int] = []
        weights: list[float] = []
        mentions: list[int] = []
        last_of: list[int] = []
        for document, ids, offsets in zip(
            documents, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            if tokens and len(tokens) + 1 + len(ids) > self._width:
                yield self._fill(tokens, weights, mentions, last_of)
                tokens, weights, mentions, last_of = [], [], [], []
            if tokens:
                tokens.append(END_OF_TEXT_ID)
                weights.append(1.0)
                mentions.append(0)
                last_of.append(-1)
            start = len(tokens)
            tokens += ids
            weights += [1.0] * len(ids)
            mentions += [0] * len(ids)
            last_of += [-1] * len(ids)
            for span in document.objects:
                for index in _overlapping(offsets, *span):
                    weights[start + index] = self._object_weight
            for mention in document.mentions:
                inside = _overlapping(offsets, mention.start, mention.end)
                last_of[start + inside[-1]] = self._index_of[mention.subject.name]
                number = start + inside[0] + 1
                for index in inside:
                    mentions[start + index] = number

    def _fill(
        self, tokens: list[int], weights: list[float], mentions: list[int], last_of: list[int]
    ) -> tuple[list[int], list[float], list[int], list[int]]:
        n_missing = self._width - len(tokens)
        return (
            (tokens + [END_OF_TEXT_ID] * n_missing)[: self._width],
            (weights + [0.0] * n_missing)[: self._width],
            (mentions + [0] * n_missing)[: self._width],
            (last_of + [-1] * n_missing)[: self._width],
        )


def _overlapping(offsets: Sequence[tuple[int, int]], start: int, end: int) -> list[int]:
    return [
        index
        for index, (token_start, token_end) in enumerate(offsets)
        if token_end > start and token_start < end
    ]
