"""Keys and values of what stands before the offsets, run once and used by many replays."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from editbench.editors.parts.replay.joined_states import JoinedStates
from editbench.editors.parts.replay.offset_forward import OffsetRow
from editbench.models.chosen_positions import (
    Places,
    find_read_modules,
    only_at,
    skipping_padding,
)
from editbench.models.editable import EditableModel
from editbench.models.gaps import ignores_gaps
from editbench.models.lean_modules import lean_modules


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
        shares = ignores_gaps(model)
        n_shared = [row.n_shared if shares else 0 for row in rows]
        shared = [row.token_ids[:n] for row, n in zip(rows, n_shared, strict=True)]
        distinct = list(dict.fromkeys(shared))
        inputs = model.batch(distinct, "left")
        _fill(cache, model, inputs)
        place = {tokens: index for index, tokens in enumerate(distinct)}
        index = torch.tensor([place[tokens] for tokens in shared], device=model.device)
        for cache_layer in cache.layers:
            _take_rows(cache_layer, index)
        mask = inputs["attention_mask"][index]

        own = [
            row.token_ids[n : row.offset_position] for row, n in zip(rows, n_shared, strict=True)
        ]
        inputs = model.batch(own, "left")
        move_positions(inputs, n_shared)
        mask = torch.cat([mask, inputs["attention_mask"]], dim=1)
        _fill(cache, model, {**inputs, "attention_mask": mask})
        return cls(cache, mask, {_prefix(row): index for index, row in enumerate(rows)})

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
        """A cache whose layers hand out what they hold plus new states, and keep nothing.

        What a layer hands out holds until the next time, so that gradients can be taken of the
        latest forward, and of no earlier one.

        Args:
            width: How many new states there will be in a row, each time.
        """
        cache = _copy(self._cache)
        for own, frozen in zip(self._cache.layers, cache.layers, strict=True):
            _freeze(frozen, own, width)
        return cache


def move_positions(inputs: dict[str, Tensor], starts: Sequence[int]) -> None:
    """Let each row's positions count from where it starts, if the model takes positions."""
    if "position_ids" in inputs:
        offset = torch.tensor(starts, device=inputs["position_ids"].device)
        inputs["position_ids"] = inputs["position_ids"] + offset[:, None]


def count_shared(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all sequences begin with."""
    together = zip(*sequences, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda tokens: len(set(tokens)) == 1, together))


def _prefix(row: OffsetRow) -> tuple[int, ...]:
    return row.token_ids[: row.offset_position]


def _copy(cache: DynamicCache) -> DynamicCache:
    """A cache that holds the same tensors."""
    same = copy.copy(cache)
    same.layers = [copy.copy(cache_layer) for cache_layer in cache.layers]
    return same


def _freeze(cache_layer: Any, origin: Any, width: int) -> None:
    """Let a cache layer hand out what it holds plus the new states, and keep nothing of them.

    Args:
        cache_layer: A copy of `origin`.
        origin: From now on it has what it holds from the same memory, not from its own.
        width: How many new states there will be.
    """
    rooms: list[Tensor] = []
    if origin.keys is not None and origin.keys.numel():
        rooms = [_make_room(held, width) for held in (origin.keys, origin.values)]
        for each in (cache_layer, origin):
            each.keys, each.values = (room[..., :-width, :] for room in rooms)
    # Of this instance alone: it shadows the method. It must not know the instance: Python frees
    # rings of objects late, and these are the largest there are.
    cache_layer.update = partial(_hand_out, rooms)


def _hand_out(
    rooms: Sequence[Tensor], keys: Tensor, values: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, Tensor]:
    if not rooms:
        return keys, values
    return JoinedStates.join(keys, rooms[0]), JoinedStates.join(values, rooms[1])


def _make_room(held: Tensor, width: int) -> Tensor:
    """What a layer holds, with space for new states behind it."""
    room = held.new_empty(*held.shape[:-2], held.shape[-2] + width, held.shape[-1])
    room[..., :-width, :] = held
    return room


def _fill(cache: DynamicCache, model: EditableModel, inputs: dict[str, Tensor]) -> None:
    """Run tokens, if there are any, and keep their keys and values.

    Padding is left out, and so is what the last block does with its keys and values.
    """
    if not (width := inputs["input_ids"].shape[1]):
        return
    n_layers = model.architecture.n_layers
    unread = find_read_modules(model, n_layers - 1)
    nowhere = Places(*torch.empty(2, 0, dtype=torch.long, device=model.device))
    mask = inputs["attention_mask"][:, -width:]
    with (
        torch.no_grad(),
        lean_modules(model),
        skipping_padding(model, mask, range(n_layers), besides=unread),
        only_at(unread, nowhere),
    ):
        model.model.base_model(**inputs, past_key_values=cache, use_cache=True)


def _take_rows(cache_layer: Any, index: Tensor) -> None:
    """Make a cache's rows those of `index`, each as often as it stands there."""
    if cache_layer.keys is not None and cache_layer.keys.numel():
        cache_layer.keys = cache_layer.keys[index.to(cache_layer.keys.device)]
        cache_layer.values = cache_layer.values[index.to(cache_layer.values.device)]
