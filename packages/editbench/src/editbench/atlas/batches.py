"""Documents into training batches that know where subjects and objects are."""

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from editbench.atlas.text import Document
from editbench.atlas.tokenizer import END_OF_TEXT_ID
from editbench.atlas.world import World

# What the fields of `TrainingBatch` hold on padding.
_PADDING = {"tokens": END_OF_TEXT_ID, "weights": 0.0, "mentions": 0, "last_of": -1}
_Row = dict[str, list[Any]]


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
        """Yield the full batches of one epoch; `among` names its subjects, None is everyone."""
        documents = list(self._world.documents(self._rng, among=among))
        rows = list(self._pack(documents))
        self._rng.shuffle(rows)
        for start in range(0, len(rows) - self._n_rows + 1, self._n_rows):
            some = rows[start : start + self._n_rows]
            yield TrainingBatch(*(torch.tensor([row[field] for row in some]) for field in _PADDING))

    def _pack(self, documents: Sequence[Document]) -> Iterator[_Row]:
        """Rows of whole documents, each field of a row padded to the width."""
        encoded = self._tokenizer(
            [document.text for document in documents], return_offsets_mapping=True
        )
        row: _Row = {field: [] for field in _PADDING}
        for document, ids, offsets in zip(
            documents, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            start = len(row["tokens"])
            if start and start + 1 + len(ids) > self._width:
                yield {
                    field: (values + [_PADDING[field]] * self._width)[: self._width]
                    for field, values in row.items()
                }
                row, start = {field: [] for field in _PADDING}, 0
            if start:
                for field, value in {**_PADDING, "weights": 1.0}.items():
                    row[field].append(value)
                start += 1
            row["tokens"] += ids
            row["weights"] += [1.0] * len(ids)
            row["mentions"] += [0] * len(ids)
            row["last_of"] += [-1] * len(ids)
            for span in document.objects:
                for index in _overlapping(offsets, *span):
                    row["weights"][start + index] = self._object_weight
            for mention in document.mentions:
                inside = _overlapping(offsets, mention.start, mention.end)
                row["last_of"][start + inside[-1]] = self._index_of[mention.subject.name]
                for index in inside:
                    row["mentions"][start + index] = start + inside[0] + 1


def _overlapping(offsets: Sequence[tuple[int, int]], start: int, end: int) -> list[int]:
    return [
        index
        for index, (token_start, token_end) in enumerate(offsets)
        if token_end > start and token_start < end
    ]
