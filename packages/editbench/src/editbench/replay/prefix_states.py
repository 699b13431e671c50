"""Keys and values of what rows begin with, run once and used by many replays."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from editbench.models.editable import EditableModel
from editbench.models.shared_prefix import can_share, fill_cache
from editbench.replay.block_calls import BlockCalls
from editbench.replay.cache_layers import HeldStates, JoinedStates
from editbench.replay.offset_forward import OffsetRow


class PrefixStates:
    """The cache of some rows' tokens before their offset.

    An offset reaches none of them, so they hold as long as the weights do, for any batch that is
    made up of these rows.

    Args:
        cache: The keys and values.
        mask: Which of its places are no padding, `[n_rows, n_cached]`; padding stands before each
            part of a row that was run at once.
        place: Which row of the cache holds which tokens.
    """

    def __init__(
        self, cache: DynamicCache, mask: Tensor, place: Mapping[tuple[int, ...], int]
    ) -> None:
        self.mask = mask
        self._cache = cache
        self._place = place

    @classmethod
    def run(cls, model: EditableModel, rows: Sequence[OffsetRow]) -> "PrefixStates":
        """Run what stands before the offsets; what rows share, once for all of them."""
        cache = DynamicCache(config=model.model.config)
        shares = can_share(model)
        n_shared = [row.n_shared if shares else 0 for row in rows]
        shared = [row.token_ids[:n] for row, n in zip(rows, n_shared, strict=True)]
        distinct = list(dict.fromkeys(shared))
        inputs = model.batch(distinct, "left")
        fill_cache(cache, model, inputs)
        place = {tokens: index for index, tokens in enumerate(distinct)}
        index = torch.tensor([place[tokens] for tokens in shared], device=model.device)
        for cache_layer in cache.layers:
            _take_rows(cache_layer, index)
        mask = inputs["attention_mask"][index]

        own = [
            row.token_ids[n : row.offset_position] for row, n in zip(rows, n_shared, strict=True)
        ]
        inputs = model.batch_behind(mask, own, n_shared, "left")
        fill_cache(cache, model, inputs)
        place = {_prefix(row): index for index, row in enumerate(rows)}
        return cls(cache, inputs["attention_mask"], place)

    def hold(self, rows: Sequence[OffsetRow]) -> bool:
        """Whether all of these rows' prefixes are among them."""
        return all(_prefix(row) in self._place for row in rows)

    def taken(self, rows: Sequence[OffsetRow]) -> "PrefixStates":
        """Those of `rows`, one row each."""
        index = torch.tensor([self._place[_prefix(row)] for row in rows], device=self.mask.device)
        cache = _copy(self._cache)
        for cache_layer in cache.layers:
            _take_rows(cache_layer, index)
        place = {_prefix(row): index for index, row in enumerate(rows)}
        return PrefixStates(cache, self.mask[index], place)

    def frozen_cache(self, width: int) -> DynamicCache:
        """A cache whose layers hand out what they hold plus `width` new states, and keep nothing.

        What a layer hands out holds until the next time, so that gradients can be taken of the
        latest forward, and of no earlier one.
        """
        cache = _copy(self._cache)
        layers: list[Any] = self._cache.layers
        for own, frozen in zip(layers, cache.layers, strict=True):
            held = HeldStates()
            if own.keys is not None and own.keys.numel():
                rooms = [_make_room(states, width) for states in (own.keys, own.values)]
                # From now on `own` has what it holds from the same memory.
                own.keys, own.values = (room[..., :-width, :] for room in rooms)
                held = HeldStates(*rooms)
            held.hand_out(frozen, join=JoinedStates.join, n_spare=width)
        return cache


class ContextStates:
    """What rows begin with, layer by layer.

    A row's own tokens see what stands before them only by its keys and values in each layer. These
    are computed once for all rows, and again whenever a layer before has got new weights.

    Args:
        model: The model; its weights may change between calls.
        contexts: Tokens that rows begin with, none empty, each once.
        first: First layer whose weights may change.
        last: Last layer that is asked for.
    """

    def __init__(
        self, model: EditableModel, contexts: Sequence[tuple[int, ...]], *, first: int, last: int
    ) -> None:
        self._model = model
        self._place = {context: index for index, context in enumerate(contexts)}
        self._cache = DynamicCache(config=model.model.config)
        self._latest = [HeldStates() for _ in self._cache.layers]
        layers: list[Any] = self._cache.layers
        for cache_layer, latest in zip(layers, self._latest, strict=True):
            cache_layer.update = latest.keep  # of this instance alone: it shadows the method
        inputs = model.batch(list(contexts), "left")
        self._mask = inputs["attention_mask"]
        cache = {"past_key_values": self._cache, "use_cache": True}
        self._calls = BlockCalls.record(
            model, lambda: model.model.base_model(**inputs, **cache), first=first, last=last
        )
        self._layer, self._states = first, self._calls.entry

    @property
    def is_complete(self) -> bool:
        """Whether the model has put keys and values of all layers into the cache it was given."""
        return all(latest.keys is not None for latest in self._latest)

    def advance(self, layer: int) -> None:
        """Bring all layers up to `layer` in line with the weights of those before it."""
        with torch.no_grad():
            self._states = self._calls.run(self._states, self._layer, layer - 1)
            self._calls.run(self._states, layer, layer)
        self._layer = layer

    def record_after(
        self,
        contexts: Sequence[tuple[int, ...]],
        rows: Sequence[Sequence[int]],
        first: int,
        last: int,
    ) -> BlockCalls:
        """Run rows up to block `first`; the calls see the latest keys and values of contexts.

        `rows` are the tokens of each row behind what it begins with, its context.
        """
        model = self._model
        index = torch.tensor([self._place[context] for context in contexts], device=model.device)
        cache = DynamicCache(config=model.model.config)
        for cache_layer, latest in zip(cache.layers, self._latest, strict=True):
            latest.hand_out(cache_layer, rows=index)
        starts = [len(context) for context in contexts]
        inputs = model.batch_behind(self._mask[index], rows, starts)
        arguments = {**inputs, "past_key_values": cache, "use_cache": True}
        return BlockCalls.record(
            model, lambda: model.model.base_model(**arguments), first=first, last=last, stop=True
        )


def _prefix(row: OffsetRow) -> tuple[int, ...]:
    return row.token_ids[: row.offset_position]


def _copy(cache: DynamicCache) -> DynamicCache:
    """A cache that holds the same tensors."""
    same = copy.copy(cache)
    same.layers = [copy.copy(cache_layer) for cache_layer in cache.layers]
    return same


def _make_room(held: Tensor, width: int) -> Tensor:
    """What a layer holds, with space for new states behind it."""
    room = held.new_empty(*held.shape[:-2], held.shape[-2] + width, held.shape[-1])
    room[..., :-width, :] = held
    return room


def _take_rows(cache_layer: Any, index: Tensor) -> None:
    """Make a cache's rows those of `index`, each as often as it stands there."""
    if cache_layer.keys is not None and cache_layer.keys.numel():
        cache_layer.keys = cache_layer.keys[index.to(cache_layer.keys.device)]
        cache_layer.values = cache_layer.values[index.to(cache_layer.values.device)]
