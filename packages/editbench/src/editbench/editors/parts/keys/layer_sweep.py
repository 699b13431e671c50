"""Keys and hidden states of all facts, measured layer by layer while the weights change."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editbench.editors.parts.context_prefixes import ContextPrefixes
from editbench.editors.parts.keys.context_states import ContextStates, can_share
from editbench.editors.parts.keys.sweep_rows import SweepRow, batch_rows, make_rows
from editbench.editors.parts.placement import place_states
from editbench.editors.parts.replay.block_calls import BlockCalls
from editbench.editors.parts.row_batches import length_sorted_batches
from editbench.editors.parts.subject_tokens import PromptRow, at_subjects
from editbench.models.architecture import ProjectionKind
from editbench.models.chosen_positions import Places, find_mlps, only_at, skipping_padding
from editbench.models.editable import EditableModel
from editbench.models.lean_modules import find_wasteful, made_lean
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
    """Rows that run together, and the states with which they enter the layer at hand.

    Attributes:
        edits: The fact of each row, `[n_rows]`.
        weights: What its key weighs, `[n_rows]`.
        last: Where the row ends, `[n_rows]`.
        mask: 1 for a token, 0 for padding, `[n_rows, width]`.
        is_bare: Whether these are rows of the bare prompt.
        calls: The blocks.
        states: What enters the layer at hand, `[n_rows, width, d_model]`.
    """

    edits: Tensor
    weights: Tensor
    last: Tensor
    mask: Tensor
    is_bare: bool
    calls: BlockCalls
    states: Tensor


class LayerSweep:
    """One stored forward of all facts, advanced layer by layer.

    Every fact is run once up to the first critical layer, after each context prefix, and no
    further than the subject's last token; the prefixes themselves are run once for all facts. When
    a layer has been updated, the blocks from there to the next critical layer are run again from
    the stored states; nothing before them is.

    Args:
        model: The model; its weights may change between calls.
        requests: The facts.
        prefixes: Context prefixes; their weights make the mean key (Eqn 19).
        weighting: ``grouped`` or ``uniform``, see `ContextPrefixes.weights`.
        first: First critical layer.
        last: Last critical layer, L.
        module: Whose output projection's inputs are the keys.
        initial: What block L of the unedited model says at the bare prompts' subjects,
            `[n_edits, d_model]`, where that is known; otherwise it is measured.
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
        initial: Tensor | None = None,
    ) -> None:
        self._model = model
        self._module = module
        self._n_edits = len(requests)
        self._layer = self._first = first
        self._last = last
        self._initial = initial
        self._wasteful = find_wasteful(model)
        self._kept_on = model.device
        self._contexts: ContextStates | None = None
        rows = make_rows(model, requests, prefixes, weighting, share=can_share(model))
        if contexts := list(dict.fromkeys(row.context for row in rows if row.context)):
            self._contexts = ContextStates(model, contexts, first=first, last=last)
            if not self._agrees([row for row in rows if row.context]):
                self._contexts = None
                rows = make_rows(model, requests, prefixes, weighting, share=False)
        batches = batch_rows(rows, model.token_budget)
        n_tokens = sum(len(batch) * max(len(row.own) for row in batch) for batch in batches)
        n_bytes = n_tokens * model.architecture.d_model * model.model.dtype.itemsize
        self._kept_on = place_states(model, n_bytes, len(requests), model.d_key(first, module))
        self._batches = [self._start(batch) for batch in batches]

    def measure(self, layer: int) -> tuple[Tensor, Tensor]:
        """Measure keys at `layer` and what block L says now, with the weights as they are.

        Args:
            layer: A critical layer, not before the one measured last.

        Returns:
            Keys `[n_edits, d_key]`, weighted means over prefixes, and the bare prompts' hidden
            states after block L, `[n_edits, d_model]`; float32.
        """
        device = self._model.device
        keys = torch.zeros(self._n_edits, self._model.d_key(layer, self._module), device=device)
        hidden = torch.zeros(self._n_edits, self._model.architecture.d_model, device=device)
        asked: Tensor | None = hidden
        if self._initial is not None and layer == self._first:
            hidden.copy_(self._initial)
            asked = None
        with torch.no_grad(), made_lean(self._wasteful):
            if self._contexts is not None:
                self._contexts.advance(layer)
            for batch in self._batches:
                self._measure(batch, layer, keys, asked)
        self._layer = layer
        return keys, hidden

    def _measure(self, batch: _Batch, layer: int, keys: Tensor, hidden: Tensor | None) -> None:
        """Advance one batch, and put its keys and hidden states where they belong."""
        states = batch.states.to(self._model.device)
        with skipping_padding(self._model, batch.mask, range(self._layer, layer)):
            states = batch.calls.run(states, self._layer, layer - 1)
        batch.states = states.to(self._kept_on)
        hidden = hidden if batch.is_bare else None
        goes_on = hidden is not None and layer < self._last
        projection = self._model.architecture.projection(layer, self._module)
        with capture(self._model.model, inputs_of=[projection]) as seen:
            states = self._run_block(batch, states, layer, everywhere=goes_on)
        inputs = seen.inputs[projection]
        if inputs.numel() > len(batch.last) * keys.shape[1]:
            inputs = at_subjects(inputs, batch.last)
        found = inputs.reshape(-1, keys.shape[1]).to(keys)
        keys.index_add_(0, batch.edits, found * batch.weights[:, None])
        if goes_on:
            with skipping_padding(self._model, batch.mask, range(layer + 1, self._last)):
                states = batch.calls.run(states, layer + 1, self._last - 1)
            states = self._run_block(batch, states, self._last, everywhere=False)
        if hidden is not None:
            hidden[batch.edits] = at_subjects(states, batch.last).to(hidden)

    def _run_block(self, batch: _Batch, states: Tensor, layer: int, *, everywhere: bool) -> Tensor:
        """Run one block; unless `everywhere`, only what it says at the subjects will be read."""
        rows = torch.arange(len(batch.last), device=batch.last.device)
        places = None if everywhere else Places(rows, batch.last)
        with only_at(find_mlps(self._model, [layer]), places):
            return batch.calls.run(states, layer, layer)

    def _agrees(self, rows: Sequence[SweepRow]) -> bool:
        """Whether rows run behind their contexts come to what the model's own forward comes to."""
        model, last = self._model, self._last
        longest = max(range(len(rows)), key=lambda index: len(rows[index].own))
        some = [rows[0], rows[longest]]
        whole = [
            PromptRow((*row.context, *row.own), len(row.context + row.own) - 1) for row in some
        ]
        expected = read_hidden(model, whole, last)
        batch = self._start(some)
        with torch.no_grad():
            states = batch.calls.run(batch.states, self._first, last)
        found = at_subjects(states, batch.last).to(expected)
        tolerance = 64 * torch.finfo(model.model.dtype).eps * expected.abs().max()
        return bool((found - expected).abs().max() <= tolerance)

    def _start(self, rows: Sequence[SweepRow]) -> _Batch:
        model = self._model
        own = model.batch([row.own for row in rows])
        mask = own["attention_mask"]
        first, last = self._first, self._last
        with made_lean(self._wasteful), skipping_padding(model, mask, range(first)):
            if self._contexts is not None and rows[0].context:
                calls = self._contexts.record_after(
                    [row.context for row in rows], [row.own for row in rows], first, last
                )
            else:
                inputs = {**own, "use_cache": False}
                calls = BlockCalls.record(
                    model,
                    lambda: model.model.base_model(**inputs),
                    first=first,
                    last=last,
                    stop=True,
                )
        states = calls.entry.to(self._kept_on)
        calls.entry = states[:0]  # it is not to be kept twice
        device = model.device
        return _Batch(
            edits=torch.tensor([row.edit for row in rows], device=device),
            weights=torch.tensor([row.weight for row in rows], device=device),
            last=torch.tensor([len(row.own) - 1 for row in rows], device=device),
            mask=mask,
            is_bare=rows[0].is_bare,
            calls=calls,
            states=states,
        )


def _inputs(model: EditableModel, rows: Sequence[PromptRow]) -> dict[str, object]:
    return {**model.batch([row.token_ids for row in rows]), "use_cache": False}
