"""A cache layer that makes its room once: texts grow by a token at a time."""

from typing import Self

import torch
from transformers.cache_utils import DynamicLayer


class PreallocatedStates(DynamicLayer):
    """Keys and values of one layer, which makes its room once, and hands out the used part of it.

    The cache of transformers makes a new tensor for each token and copies the old one into it: four
    fifths of the time that a small model takes to write a text.
    """

    def __init__(self, n_positions: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._n_positions = n_positions
        self._n_used = 0

    @classmethod
    def of_rows(cls, layer: DynamicLayer, rows: torch.Tensor, n_positions: int) -> Self:
        """A copy of some rows of another layer."""
        made = cls(n_positions)
        if layer.keys is not None and layer.values is not None:  # some share another layer's
            made.update(layer.keys[rows], layer.values[rows])
        return made

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make room for rows like the first that come."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._key_room, self._value_room = (
            states.new_empty(*states.shape[:-2], self._n_positions, states.shape[-1])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens; returns all there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, self._n_used = self._n_used, self._n_used + key_states.shape[-2]
        self._key_room[..., begin : self._n_used, :] = key_states
        self._value_room[..., begin : self._n_used, :] = value_states
        return self._hand_out()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only these rows."""
        if self.is_initialized:
            self._key_room, self._value_room = self._key_room[indices], self._value_room[indices]
            self._hand_out()

    def _hand_out(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys = self._key_room[..., : self._n_used, :]
        self.values = self._value_room[..., : self._n_used, :]
        return self.keys, self.values
