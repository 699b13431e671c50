"""A forward from the weights that are trained on: what stands in front of them is run once."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from editbench.errors import ModelError
from editbench.models.chosen_positions import Places, find_read_modules, only_at
from editbench.models.editable import EditableModel
from editbench.models.head import apply_head
from editbench.models.lean_modules import find_wasteful, made_lean
from editbench.replay.block_calls import BlockCalls
from memit_core import capture


class TrainedSuffix:
    """Logits of one batch as a differentiable function of one block's weights.

    While no other weights change, the states that enter that block stay as they are; and while only
    its MLP's output projection does, so does what goes into the projection. These are kept, and a
    call runs what comes after them.

    Args:
        model: The model, not trained yet.
        inputs: The batch, as keyword arguments of the model.
        rows: The rows to read logits in, long, `[n]`.
        positions: The positions within those rows, long, `[n]`.
        layer: The block.
        projection_adds: Only the MLP's output projection is trained, and what it puts out is added
            to the residual stream as it is (`OffsetSite.outermost_equivalent` tells).
    """

    def __init__(
        self,
        model: EditableModel,
        inputs: Mapping[str, Any],
        rows: Tensor,
        positions: Tensor,
        *,
        layer: int,
        projection_adds: bool,
    ) -> None:
        self._model = model
        self._rows, self._positions = rows, positions
        self._places = Places(*torch.stack([rows, positions]).unique(dim=1))
        self._last = model.architecture.n_layers - 1
        self._read_modules = find_read_modules(model, self._last)
        self._wasteful = find_wasteful(model)
        self._calls = BlockCalls.record(
            model, lambda: model.model(**inputs), first=layer, last=self._last, stop=True
        )
        self.layer, self.projection_adds = layer, projection_adds
        self._first = layer
        self._states = self._calls.entry
        self._keys: Tensor | None = None
        path = model.architecture.mlp_projections[layer]
        self._projection = model.model.get_submodule(path)
        if projection_adds:
            reading = capture(model.model, inputs_of=[path], outputs_of=[path])
            with torch.no_grad(), reading as seen:
                output = self._calls.run(self._states, layer, layer)
            self._first += 1
            self._states = output - seen.outputs[path].reshape(output.shape)
            self._keys = seen.inputs[path]

    @property
    def n_bytes(self) -> int:
        """What the kept states take in memory."""
        kept = [self._states, self._calls.entry]
        kept += [] if self._keys is None else [self._keys]
        return sum(states.numel() * states.element_size() for states in kept)

    def logits(self) -> Tensor:
        """Logits at the chosen places, with the weights as they are, `[n, vocabulary]`.

        Raises:
            ModelError: The model's blocks can only be read out by its own forward.
        """
        states = self._states
        if self._keys is not None:
            states = states + self._projection(self._keys).reshape(states.shape)
        with made_lean(self._wasteful):
            states = self._calls.run(states, self._first, self._last - 1)
            with only_at(self._read_modules, self._places):
                states = self._calls.run(states, max(self._first, self._last), self._last)
        if states.dim() != 3:
            raise ModelError(
                f"training on '{self._model.name}': its blocks hand on several residual streams, "
                f"got states of shape {list(states.shape)}; only its own forward reads them out."
            )
        rows, positions = self._rows.to(states.device), self._positions.to(states.device)
        return apply_head(self._model, states[rows, positions])
