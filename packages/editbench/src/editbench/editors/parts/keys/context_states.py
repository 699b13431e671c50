"""Keys and values of the context prefixes, run once for all facts while the weights change."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from editbench.editors.parts.replay.block_calls import BlockCalls
from editbench.editors.parts.replay.prefix_states import move_positions
from editbench.models.editable import EditableModel
from editbench.models.gaps import ignores_gaps


def can_share(model: EditableModel) -> bool:
    """Whether rows see what they begin with by keys and values alone, padded or not."""
    layers = DynamicCache(config=model.model.config).layers
    return ignores_gaps(model) and all(hasattr(layer, "keys") for layer in layers)


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
        self._latest = [_Latest() for _ in self._cache.layers]
        layers: list[Any] = self._cache.layers
        for cache_layer, latest in zip(layers, self._latest, strict=True):
            cache_layer.update = latest.update  # of this instance alone: it shadows the method
        inputs = model.batch(list(contexts), "left")
        self._mask = inputs["attention_mask"]
        cache = {"past_key_values": self._cache, "use_cache": True}
        self._calls = BlockCalls.record(
            model, lambda: model.model.base_model(**inputs, **cache), first=first, last=last
        )
        self._layer, self._states = first, self._calls.entry

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

        Args:
            contexts: What each row begins with.
            rows: The tokens of each row behind that.
            first: Index of the first block to record.
            last: Index of the last one.
        """
        model = self._model
        index = torch.tensor([self._place[context] for context in contexts], device=model.device)
        cache = DynamicCache(config=model.model.config)
        for number, latest in enumerate(self._latest):
            places = index.to(latest.keys.device)
            cache.update(latest.keys[places], latest.values[places], number)
            _hand_out(cache.layers[number], latest, index)
        inputs = model.batch(rows)
        move_positions(inputs, [len(context) for context in contexts])
        masks = [self._mask[index], inputs["attention_mask"]]
        inputs["attention_mask"] = torch.cat(masks, dim=1)
        arguments = {**inputs, "past_key_values": cache, "use_cache": True}
        calls = BlockCalls.record(
            model, lambda: model.model.base_model(**arguments), first=first, last=last, stop=True
        )
        own: list[Any] = cache.layers
        for cache_layer in own:
            cache_layer.keys = cache_layer.values = None
        return calls


class _Latest:
    """Holds what a cache layer was given last, and nothing of before.

    The layer does not hold it itself: that would make a ring, which Python frees late.
    """

    keys: Tensor
    values: Tensor

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values = keys, values
        return keys, values


def _hand_out(cache_layer: Any, source: _Latest, index: Tensor) -> None:
    """Let a cache layer put rows `index` of what `source` holds before the new states."""

    def update(keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        rows = index.to(keys.device)
        return (
            torch.cat([source.keys[rows], keys], dim=-2),
            torch.cat([source.values[rows], values], dim=-2),
        )

    cache_layer.update = update
