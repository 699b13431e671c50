"""What a model's blocks are called with, from any position of any prompt on, for many copies of it.

One forward of one row from that position on says what it is; the blocks are then called with the
same for many rows, all of the same length.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from editbench.models.editable import EditableModel
from editbench.replay.block_calls import BlockCalls, Place
from editbench.replay.cache_layers import HeldStates

KeysValues = Sequence[tuple[Tensor, Tensor]]


class ReplayArguments:
    """Says what a model's blocks are called with, from any position of any prompt on.

    Nearly all arguments have one row that serves every row of a batch; those that do not, a forward
    of two rows gives away. And nearly all depend on the prompt's length alone, so that prompts can
    share them; where they depend on its tokens, a forward of other tokens gives that away.
    """

    def __init__(self, model: EditableModel) -> None:
        self._model = model
        self._repeated: frozenset[Place] = frozenset()
        self._is_shared: bool | None = None  # nobody knows yet
        self._known: dict[tuple[int, int], tuple[BlockCalls, list[HeldStates]]] = {}

    def replay_from(
        self, start: int, token_ids: Sequence[int], keys_values: KeysValues
    ) -> BlockCalls:
        """The blocks from position `start` of a prompt on.

        Args:
            start: The first replayed position.
            token_ids: The prompt.
            keys_values: By layer, keys and values of all positions, `[n_copies, n_heads, n_tokens,
                d_head]`; row i of a batch has those before `start` of copy ``i % n_copies``.
        """
        if self._is_shared is None:
            self._look_into(token_ids, len(keys_values))
        place = (len(token_ids), start)
        calls, past = self._known.get(place, (None, [HeldStates() for _ in keys_values]))
        for held, states in zip(past, keys_values, strict=True):
            held.keys, held.values = (each[..., :start, :] for each in states)
        if calls is None or not self._is_shared:
            calls = self._record(token_ids, start, past)
            calls.repeated = self._repeated
            self._known[place] = calls, past
        return calls

    def _look_into(self, token_ids: Sequence[int], n_layers: int) -> None:
        """Find out which arguments must be repeated, and whether prompts can share them."""
        nothing = [HeldStates() for _ in range(n_layers)]
        one, two, other = (
            self._record(ids, 0, nothing, n_rows).tensors()
            for ids, n_rows in ((token_ids, 1), (token_ids, 2), (token_ids[::-1], 1))
        )
        self._repeated = frozenset(
            place
            for place, given in one.items()
            if given.dim() and len(given) > 1 and place in two and len(two[place]) == 2 * len(given)
        )
        self._is_shared = one.keys() == other.keys() and all(
            torch.equal(given, other[place]) for place, given in one.items()
        )

    def _record(
        self, token_ids: Sequence[int], start: int, past: Sequence[HeldStates], n_rows: int = 1
    ) -> BlockCalls:
        """Let the model call its blocks on a prompt from `start` on."""
        inputs = self._model.batch([token_ids] * n_rows)
        for name in ("input_ids", "position_ids"):
            if name in inputs:
                inputs[name] = inputs[name][:, start:]
        layers: list[Any] = [DynamicLayer() for _ in past]
        for layer, held in zip(layers, past, strict=True):
            held.hand_out(layer)
        cache = {"past_key_values": Cache(layers=layers), "use_cache": True}
        return BlockCalls.record(
            self._model,
            lambda: self._model.model.base_model(**inputs, **cache),
            first=0,
            last=self._model.architecture.n_layers - 1,
            stop=True,
        )
