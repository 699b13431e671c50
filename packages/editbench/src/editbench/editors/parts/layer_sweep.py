"""Keys and hidden states of all facts, measured layer by layer while the weights change."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editbench.editors.parts.block_calls import BlockCalls
from editbench.editors.parts.chosen_positions import Places, find_mlps, only_at
from editbench.editors.parts.context_prefixes import ContextPrefixes
from editbench.editors.parts.row_batches import length_sorted_batches
from editbench.editors.parts.subject_tokens import PromptRow, at_subjects, key_row
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest
from memit_core import capture


def read_hidden(model: EditableModel, rows: Sequence[PromptRow], layer: int) -> Tensor:
    """Block `layer`'s output at each row's subject's last token, float32 `[n_rows, d_model]`."""
    block = model.architecture.block(layer)
    hidden = torch.empty(len(rows), model.architecture.d_model, device=model.device)
    lengths = [len(row.token_ids) for row in rows]
    for batch in length_sorted_batches(lengths, model.token_budget):
        with torch.no_grad(), capture(model.model, outputs_of=[block], stop=True) as seen:
            model.model(**_inputs(model, [rows[index] for index in batch]))
        last = torch.tensor([rows[index].subject_last for index in batch])
        hidden[batch] = at_subjects(seen.outputs[block], last).to(hidden)
    return hidden


@dataclass
class _Batch:
    """Rows that run together, and the states with which they enter the layer at hand."""

    edits: Tensor
    last: Tensor
    weights: Tensor
    is_bare: bool
    calls: BlockCalls
    states: Tensor


class LayerSweep:
    """One stored forward of all facts, advanced layer by layer.

    Every fact is run once up to the first critical layer, after each context prefix, and no
    further than the subject's last token. When a layer has been updated, the blocks from there to
    the next critical layer are run again from the stored states; nothing before them is.

    Args:
        model: The model; its weights may change between calls.
        requests: The facts.
        prefixes: Context prefixes; their weights make the mean key (Eqn 19).
        weighting: ``grouped`` or ``uniform``, see `ContextPrefixes.weights`.
        first: First critical layer.
        last: Last critical layer, L.
        module: Whose output projection's inputs are the keys.
    """

    def __init__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        prefixes: ContextPrefixes,
        weighting: str,
        *,
        first: int,
        last: int,
        module: ProjectionKind = "mlp",
    ) -> None:
        self._model = model
        self._module = module
        self._n_edits = len(requests)
        self._layer = first
        self._last = last
        weighted = dict.fromkeys(["", *prefixes.flat], 0.0)
        for prefix, weight in zip(prefixes.flat, prefixes.weights(weighting), strict=True):
            weighted[prefix] += weight
        self._batches = []
        for is_bare in (True, False):
            rows = [
                (edit, key_row(model.tokens, request, prefix), weight)
                for prefix, weight in weighted.items()
                if (prefix == "") == is_bare
                for edit, request in enumerate(requests)
            ]
            lengths = [len(row.token_ids) for _, row, _ in rows]
            for batch in length_sorted_batches(lengths, model.token_budget):
                self._batches.append(self._start([rows[index] for index in batch], is_bare))

    def measure(self, layer: int) -> tuple[Tensor, Tensor]:
        """Measure keys at `layer` and what block L says now, with the weights as they are.

        Args:
            layer: A critical layer, not before the one measured last.

        Returns:
            Keys `[n_edits, d_key]`, weighted means over prefixes, and the bare prompts' hidden
            states after block L, `[n_edits, d_model]`; float32.
        """
        model = self._model
        projection = model.architecture.projection(layer, self._module)
        d_key = model.d_key(layer, self._module)
        keys = torch.zeros(self._n_edits, d_key, device=model.device)
        hidden = torch.zeros(self._n_edits, model.architecture.d_model, device=model.device)
        for batch in self._batches:
            with torch.no_grad():
                batch.states = batch.calls.run(batch.states, self._layer, layer - 1)
                goes_on = batch.is_bare and layer < self._last
                with capture(model.model, inputs_of=[projection]) as seen:
                    states = self._run_block(batch, batch.states, layer, everywhere=goes_on)
                inputs = seen.inputs[projection]
                if inputs.numel() > len(batch.last) * d_key:
                    inputs = at_subjects(inputs, batch.last)
                found = inputs.reshape(-1, d_key).to(keys)
                keys.index_add_(0, batch.edits, found * batch.weights[:, None])
                if goes_on:
                    states = batch.calls.run(states, layer + 1, self._last - 1)
                    states = self._run_block(batch, states, self._last, everywhere=False)
                if batch.is_bare:
                    hidden[batch.edits] = at_subjects(states, batch.last).to(hidden)
        self._layer = layer
        return keys, hidden

    def _run_block(self, batch: _Batch, states: Tensor, layer: int, *, everywhere: bool) -> Tensor:
        """Run one block; unless `everywhere`, only what it says at the subjects will be read."""
        rows = torch.arange(len(batch.last), device=batch.last.device)
        places = None if everywhere else Places(rows, batch.last)
        with only_at(find_mlps(self._model, [layer]), places):
            return batch.calls.run(states, layer, layer)

    def _start(self, rows: Sequence[tuple[int, PromptRow, float]], is_bare: bool) -> _Batch:
        model = self._model
        inputs = _inputs(model, [row for _, row, _ in rows])
        calls = BlockCalls.record(
            model, lambda: model.model(**inputs), first=self._layer, last=self._last, stop=True
        )
        device = model.device
        return _Batch(
            edits=torch.tensor([edit for edit, _, _ in rows], device=device),
            last=torch.tensor([row.subject_last for _, row, _ in rows], device=device),
            weights=torch.tensor([weight for _, _, weight in rows], device=device),
            is_bare=is_bare,
            calls=calls,
            states=calls.entry,
        )


def _inputs(model: EditableModel, rows: Sequence[PromptRow]) -> dict[str, object]:
    return {**model.batch([row.token_ids for row in rows]), "use_cache": False}
