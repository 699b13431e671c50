"""What rows begin with, run once: keys and values in a cache of one row, put before them all."""

from collections.abc import Sequence
from inspect import signature
from typing import Literal, Self, cast

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from editbench.models.chosen_positions import (
    Places,
    find_read_modules,
    only_at,
    skipping_padding,
)
from editbench.models.continuing import find_continuing
from editbench.models.editable import EditableModel
from editbench.models.lean_modules import lean_modules
from editbench.models.preallocated_states import PreallocatedStates
from editbench.models.states_behind import StatesBehind


def can_share(model: EditableModel) -> bool:
    """Whether rows can share what they begin with: padding in the middle of a row changes nothing.

    Parts that are run apart, such as a context prefix and what stands behind it, are put together
    at the width of the longest, and padding comes to lie between them. The mask hides it, but where
    a model counts distances by places and not by the positions that it is told, or looks through a
    window, padding takes up room all the same.

    Only keys and values can be put together. Models that are not told positions may count them
    from the mask, or not; none of them is trusted (MPT counts padding as distance). GPT-Neo's local
    attention counts places.
    """
    if find_continuing(model) != "padded":
        return False
    if "position_ids" not in signature(model.model.forward).parameters:
        return False
    config = model.model.config.get_text_config(decoder=True)
    if getattr(config, "window_size", None) is not None:
        return False
    layers = DynamicCache(config=model.model.config).layers
    return all(hasattr(each, "keys") and not getattr(each, "is_sliding", False) for each in layers)


def count_shared(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all sequences begin with; by halves, since slices compare fast."""
    if not sequences:
        return 0
    one, other = min(sequences), max(sequences)  # all that lie between begin with what these share
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        if one[least:middle] == other[least:middle]:
            least = middle
        else:
            most = middle - 1
    return least


def fill_cache(cache: DynamicCache, model: EditableModel, inputs: dict[str, Tensor]) -> None:
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


class PrefixedStates(DynamicLayer):
    """Keys and values of one layer for rows that begin alike: each row's own, and the prefix's.

    The prefix's are there once; where attention cannot do without, they are copied for each row
    while the layer runs.

    Args:
        prefix: The layer of the prefix alone, of one row.
        own: A layer for the rows' further tokens.
    """

    def __init__(self, prefix: DynamicLayer, own: DynamicLayer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._prefix, self._own = prefix, own
        self.keys, self.values = prefix.keys, prefix.values
        self.dtype, self.device = prefix.dtype, prefix.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add tokens to the rows' own; returns all there are, the prefix's before them."""
        keys, values = self._own.update(key_states, value_states)
        prefix_keys, prefix_values = cast(Tensor, self.keys), cast(Tensor, self.values)
        return StatesBehind.of(keys, prefix_keys), StatesBehind.of(values, prefix_values)

    def get_seq_length(self) -> int:
        """How many tokens a row has, padding included."""
        return int(self._prefix.get_seq_length() + self._own.get_seq_length())

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        self._own.batch_select_indices(indices)

    def of_rows(self, rows: Tensor, n_more: int) -> Self:
        """A copy of some rows, with room for `n_more` tokens each."""
        own = PreallocatedStates.of_rows(self._own, rows, self._own.get_seq_length() + n_more)
        return type(self)(self._prefix, own)


class SharedPrefix:
    """The tokens that some rows begin with, and, from the first use on, their keys and values.

    These hold as long as the weights do.

    Attributes:
        ids: The tokens; with none, rows are run whole.

    Args:
        model: The model, one that `can_share` if there are tokens.
        ids: See above.
    """

    def __init__(self, model: EditableModel, ids: tuple[int, ...] = ()) -> None:
        self.ids = ids
        self._model = model
        self._states: DynamicCache | None = None

    def inputs(
        self, rows: Sequence[Sequence[int]], side: Literal["right", "left"]
    ) -> dict[str, Tensor]:
        """`EditableModel.batch` of what rows that begin with the prefix have behind it."""
        n_before = len(self.ids)
        mask = torch.ones(len(rows), n_before, dtype=torch.long, device=self._model.device)
        own = [row[n_before:] for row in rows]
        return self._model.batch_behind(mask, own, [n_before] * len(rows), side)

    def cache(self, n_positions: int | None = None) -> DynamicCache:
        """A new cache for any number of rows behind the prefix.

        Args:
            n_positions: How many tokens each row is going to have there, the prefix's not counted;
                None if not known. Layers with a sliding window do not ask.
        """
        made = DynamicCache(config=self._model.model.config)
        if n_positions is not None:
            made.layers = [
                PreallocatedStates(n_positions) if type(layer) is DynamicLayer else layer
                for layer in made.layers
            ]
        if self.ids:
            made.layers = [
                layer if before.keys is None else PrefixedStates(before, layer)
                for before, layer in zip(
                    cast("list[DynamicLayer]", self._run().layers),
                    cast("list[DynamicLayer]", made.layers),
                    strict=True,
                )
            ]
        return made

    def _run(self) -> DynamicCache:
        if self._states is None:
            states = DynamicCache(config=self._model.model.config)
            fill_cache(states, self._model, self._model.batch([self.ids]))
            self._states = states
        return self._states


class LatestPrefix:
    """Runs prefixes, and holds on to the latest: batches that share one follow each other.

    Args:
        model: The model; its weights must not change.
    """

    def __init__(self, model: EditableModel) -> None:
        self._model = model
        self._latest = SharedPrefix(model)

    def get(self, ids: tuple[int, ...]) -> SharedPrefix:
        """The prefix with these tokens; one before it is let go."""
        if ids != self._latest.ids:
            self._latest = SharedPrefix(self._model, ids)
        return self._latest
