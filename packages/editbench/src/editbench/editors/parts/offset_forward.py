"""The model as a function of offsets: hidden-state offsets go in, logits at chosen places come out.

Every row of a batch gets one offset δ, added to the output of block L at one position. Two
implementations give the same numbers: `FullForward` runs the whole model on whole rows and is the
oracle; `SuffixReplay` runs only what the offset can reach.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from editbench.editors.parts.block_calls import BlockCalls
from editbench.models.editable import EditableModel
from editbench.models.head import select_head_positions
from editbench.models.readout import apply_head
from memit_core import capture, intervene


@dataclass(frozen=True, slots=True)
class OffsetRow:
    """Tokens, where the offset is added, and where logits are read (at or after that place)."""

    token_ids: tuple[int, ...]
    offset_position: int
    read_positions: tuple[int, ...]


class ReplayMismatchError(RuntimeError):
    """Replaying this model's blocks does not give what its own forward gives."""


class OffsetForward(ABC):
    """Logits of a batch of rows as a differentiable function of one offset a row.

    Args:
        model: The model.
        layer: L, the block whose output the offsets are added to.
        rows: The batch.
        read_layer: The block whose output the final norm and head are applied to; None is the
            last one, which gives the model's ordinary logits.

    Attributes:
        read_rows: For each read, the row it belongs to, `[n_reads]`.
    """

    def __init__(
        self,
        model: EditableModel,
        layer: int,
        rows: Sequence[OffsetRow],
        read_layer: int | None = None,
    ) -> None:
        self.model = model
        self.layer = layer
        self.rows = rows
        last = model.architecture.n_layers - 1
        self.read_layer = last if read_layer is None else max(read_layer, layer)
        self.read_rows = torch.tensor(
            [index for index, row in enumerate(rows) for _ in row.read_positions],
            device=model.device,
        )

    @abstractmethod
    def logits(self, offsets: Tensor) -> Tensor:
        """Run the rows with `offsets` added.

        Args:
            offsets: δ of each row, `[n_rows, d_model]`.

        Returns:
            Logits at the read positions, row after row, `[n_reads, vocabulary]`.
        """

    @property
    def _reads_ordinary_logits(self) -> bool:
        return self.read_layer == self.model.architecture.n_layers - 1

    def _read_positions(self, shift: Sequence[int]) -> Tensor:
        """Read positions of all rows, each moved by its row's `shift`."""
        return torch.tensor(
            [
                p + move
                for row, move in zip(self.rows, shift, strict=True)
                for p in row.read_positions
            ],
            device=self.model.device,
        )


class FullForward(OffsetForward):
    """The whole model on whole rows at every call: slow, plain, and right for any architecture."""

    def __init__(
        self,
        model: EditableModel,
        layer: int,
        rows: Sequence[OffsetRow],
        read_layer: int | None = None,
    ) -> None:
        super().__init__(model, layer, rows, read_layer)
        self._inputs = {**model.batch([row.token_ids for row in rows]), "use_cache": False}
        self._row_index = torch.arange(len(rows), device=model.device)
        self._offset_index = torch.tensor(
            [row.offset_position for row in rows], device=model.device
        )
        self._read_index = self._read_positions([0] * len(rows))

    def logits(self, offsets: Tensor) -> Tensor:
        """See `OffsetForward.logits`."""

        def add_offsets(states: Tensor) -> Tensor:
            moved = states[self._row_index, self._offset_index].float() + offsets
            return states.index_put((self._row_index, self._offset_index), moved.to(states.dtype))

        blocks = self.model.architecture.block
        with intervene(self.model.model, {blocks(self.layer): add_offsets}):
            if self._reads_ordinary_logits:
                with select_head_positions(self.model, self.read_rows, self._read_index):
                    return self.model.model(**self._inputs).logits[0]
            read_block = blocks(self.read_layer)
            with capture(self.model.model, outputs_of=[read_block], stop=True) as seen:
                self.model.model(**self._inputs)
        return apply_head(self.model, seen.outputs[read_block][self.read_rows, self._read_index])


class SuffixReplay(OffsetForward):
    """Runs only what an offset can reach: blocks after L, from the offset's position on.

    In a causal model a state at layer L and position t reaches neither a layer up to L nor a
    position before t. So the prefix before t is run once and its keys and values kept; the suffix
    from t on is run once up to L and its states kept; a call replays blocks L+1 … on the suffix
    alone and reads logits where they are asked for. The result is exact.

    Raises:
        ReplayMismatchError: With `verify`, if a replay without offsets is not the model's own
            forward: its cache cannot be frozen, or its blocks are not called in a plain sequence.
    """

    def __init__(
        self,
        model: EditableModel,
        layer: int,
        rows: Sequence[OffsetRow],
        read_layer: int | None = None,
        *,
        verify: bool = True,
    ) -> None:
        super().__init__(model, layer, rows, read_layer)
        self._read_index = self._read_positions([-row.offset_position for row in rows])
        cache = DynamicCache(config=model.model.config)
        prefix = model.batch([row.token_ids[: row.offset_position] for row in rows], "left")
        if prefix["input_ids"].shape[1]:
            with torch.no_grad():
                model.model.base_model(**prefix, past_key_values=cache, use_cache=True)
        for cache_layer in cache.layers:
            _freeze(cache_layer)
        suffix = model.batch([row.token_ids[row.offset_position :] for row in rows])
        if "position_ids" in suffix:
            starts = torch.tensor([row.offset_position for row in rows], device=model.device)
            suffix["position_ids"] = suffix["position_ids"] + starts[:, None]
        suffix["attention_mask"] = torch.cat(
            [prefix["attention_mask"], suffix["attention_mask"]], dim=1
        )
        inputs = {**suffix, "past_key_values": cache, "use_cache": True}
        first = min(layer + 1, model.architecture.n_layers - 1)
        block = model.architecture.block(layer)
        own_logits: list[Tensor] = []

        def run_suffix() -> None:
            with capture(model.model, outputs_of=[block]) as seen:
                if verify and self._reads_ordinary_logits:
                    with select_head_positions(model, self.read_rows, self._read_index):
                        own_logits.append(model.model(**inputs).logits[0])
                else:
                    model.model.base_model(**inputs)
            self._states = seen.outputs[block]

        self._calls = BlockCalls.record(
            model, run_suffix, first=first, last=model.architecture.n_layers - 1
        )
        for cache_layer in cache.layers[: layer + 1]:
            _empty(cache_layer)
        if own_logits:
            self._check(own_logits[0])

    def logits(self, offsets: Tensor) -> Tensor:
        """See `OffsetForward.logits`."""
        moved = (self._states[:, :1].float() + offsets[:, None]).to(self._states.dtype)
        states = torch.cat([moved, self._states[:, 1:]], dim=1)
        states = self._calls.run(states, self.layer + 1, self.read_layer)
        return apply_head(self.model, states[self.read_rows, self._read_index])

    def _check(self, expected: Tensor) -> None:
        with torch.no_grad():
            replayed = self.logits(torch.zeros_like(self._states[:, 0]))
        tolerance = 64 * torch.finfo(expected.dtype).eps * expected.float().abs().max()
        worst = (replayed.float() - expected.float()).abs().max()
        if not worst <= tolerance:
            raise ReplayMismatchError(
                f"suffix replay: logits differ from the model's own by {worst:.2e}; "
                f"expected at most {tolerance:.2e}."
            )


def _freeze(cache_layer: Any) -> None:
    """Let a cache layer hand out what it holds plus the new states, and keep nothing of them."""

    def hand_out(keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if cache_layer.keys is None or cache_layer.keys.numel() == 0:
            return keys, values
        return (
            torch.cat([cache_layer.keys, keys], dim=-2),
            torch.cat([cache_layer.values, values], dim=-2),
        )

    cache_layer.update = hand_out  # of this instance alone: it shadows the method


def _empty(cache_layer: Any) -> None:
    """Free what a cache layer holds."""
    cache_layer.keys = cache_layer.values = None
