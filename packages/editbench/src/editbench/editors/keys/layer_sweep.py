"""Keys and hidden states of all facts, measured layer by layer while the weights change."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.keys.reading import read_at_subjects, read_hidden
from editbench.editors.keys.sweep_batches import (
    SweepRow,
    Visit,
    batch_rows,
    count_kept,
    make_rows,
)
from editbench.editors.solve_estimates import count_solve_bytes
from editbench.editors.subject_tokens import PromptRow, at_subjects
from editbench.models.agreement import agree
from editbench.models.architecture import ProjectionKind
from editbench.models.chosen_positions import Places, find_mlps, only_at, skipping_padding
from editbench.models.editable import EditableModel
from editbench.models.lean_modules import find_wasteful, made_lean
from editbench.models.out_of_memory import Halving
from editbench.models.shared_prefix import can_share
from editbench.models.token_states import by_token
from editbench.replay.block_calls import BlockCalls
from editbench.replay.open_block import OpenBlock, can_stay_open
from editbench.replay.prefix_states import ContextStates
from editbench.requests import EditRequest
from memit_core import capture


@dataclass
class _Batch:
    """Rows that run together, and the states with which they enter the layer at hand.

    Attributes:
        rows: The rows.
        layer: The layer at hand.
        edits: The fact of each row, `[n_rows]`.
        weights: What its key weighs, `[n_rows]`.
        last: Where the row ends, `[n_rows]`.
        mask: 1 for a token, 0 for padding, `[n_rows, width]`.
        is_bare: Whether these are rows of the bare prompt.
        calls: The blocks.
        states: What enters the layer at hand, `[n_rows, width, d_model]`; empty if it is open.
        opened: The layer at hand, if it has run but for its projection.
    """

    rows: Sequence[SweepRow]
    layer: int
    edits: Tensor
    weights: Tensor
    last: Tensor
    mask: Tensor
    is_bare: bool
    calls: BlockCalls
    states: Tensor
    opened: OpenBlock | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class _Measured:
    """What one batch has shown: keys `[n_rows, d_key]`, and hidden states if they are asked for."""

    batch: _Batch
    keys: Tensor
    hidden: Tensor | None


@dataclass
class SweepChecks:
    """What self-checks of a sweep have found out about a model; None: not tried yet.

    Attributes:
        agrees: Whether rows behind shared contexts come to what whole ones come to.
        runs_again: Whether blocks that run again come to what the model's own forward comes to.
        opens: Whether blocks can be kept open.
    """

    agrees: bool | None = None
    runs_again: bool | None = None
    opens: bool | None = None


class LayerSweep:
    """One stored forward of all facts, advanced layer by layer.

    Every fact is run once up to the first critical layer, after each context prefix, and no
    further than the subject's last token; the prefixes themselves are run once for all facts. When
    a layer has been updated, the blocks from there to the next critical layer are run again from
    the stored states; nothing before them is. Rows of bare prompts go on to the last critical layer
    from each one, and so that they need not come back for it, the layer's block is kept open
    (`OpenBlock`). Where memory runs out, batches are divided, and stay so; the parts' own arguments
    of the blocks are recorded anew, up to the first critical layer. Where blocks run again are not
    what the model's own forward makes of them, every layer takes whole forwards.

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
        checks: What was found out with other facts on the same model and layers, and holds for
            these; filled in.

    Raises:
        DeviceMemoryError: There is not enough memory for a single row.
    """

    def __init__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        prefixes: ContextPrefixes,
        weighting: str | float,
        *,
        first: int,
        last: int,
        module: ProjectionKind = "mlp",
        initial: Tensor | None = None,
        checks: SweepChecks | None = None,
    ) -> None:
        self._model = model
        self._module = module
        self._n_edits = len(requests)
        self._first = first
        self._last = last
        self._initial = initial
        self._operation = f"keys on '{model.name}'"
        self._wasteful = find_wasteful(model)
        self._kept_on = model.device
        self._contexts: ContextStates | None = None
        checks = checks or SweepChecks()
        shares = can_share(model) and checks.agrees is not False
        rows = make_rows(model, requests, prefixes, weighting, share=shares)
        if contexts := list(dict.fromkeys(row.context for row in rows if row.context)):
            self._contexts = ContextStates(model, contexts, first=first, last=last)
            if checks.agrees is None:
                behind = [row for row in rows if row.context]
                checks.agrees = self._contexts.is_complete and self._agrees(behind)
            if not checks.agrees:
                self._contexts = None
                rows = make_rows(model, requests, prefixes, weighting, share=False)
        bare = [row for row in rows if row.is_bare]
        self._whole: list[SweepRow] = []
        if self._contexts is None:
            if checks.runs_again is None:
                checks.runs_again = self._agrees(bare)
            if not checks.runs_again:
                self._whole = rows
                return
        batches = list(batch_rows(rows, model.memory.tokens))
        if checks.opens is None:
            checks.opens = module == "mlp" and first < last and self._can_open(bare)
        self._opens = checks.opens
        d_key = model.d_key(first, module)
        n_bytes = count_kept(batches, model.architecture.d_model, d_key if self._opens else 0)
        n_bytes *= model.model.dtype.itemsize
        n_beside = count_solve_bytes(len(requests), d_key, model.architecture.d_model)
        self._kept_on = model.memory.place(n_bytes + n_beside)
        halving = Halving(self._operation)
        self._batches = [part for batch in batches for part in halving.run(batch.rows, self._start)]

    def measure(self, layer: int) -> tuple[Tensor, Tensor]:
        """Measure keys at `layer` and what block L says now, with the weights as they are.

        Args:
            layer: A critical layer, not before the one measured last.

        Returns:
            Keys `[n_edits, d_key]`, weighted means over prefixes, and the bare prompts' hidden
            states after block L, `[n_edits, d_model]`; float32.

        Raises:
            DeviceMemoryError: There is not enough memory for a single row.
        """
        device = self._model.device
        keys = torch.zeros(self._n_edits, self._model.d_key(layer, self._module), device=device)
        hidden = torch.zeros(self._n_edits, self._model.architecture.d_model, device=device)
        is_known = self._initial is not None and layer == self._first
        if self._initial is not None and is_known:
            hidden.copy_(self._initial)
        if self._whole:
            return self._measure_whole(layer, keys, hidden, with_hidden=not is_known)
        with torch.no_grad(), made_lean(self._wasteful):
            if self._contexts is not None:
                self._contexts.advance(layer)
            for one in self._measure_all(layer, with_hidden=not is_known):
                edits, weights = one.batch.edits, one.batch.weights
                keys.index_add_(0, edits, one.keys * weights[:, None])
                if one.hidden is not None:
                    hidden[edits] = one.hidden
        return keys, hidden

    def _measure_whole(
        self, layer: int, keys: Tensor, hidden: Tensor, *, with_hidden: bool
    ) -> tuple[Tensor, Tensor]:
        """The same by the model's own forwards, into `keys` and `hidden`."""
        model, rows = self._model, self._whole
        prompts = [PromptRow(row.own, len(row.own) - 1) for row in rows]
        edits = torch.tensor([row.edit for row in rows], device=model.device)
        weights = torch.tensor([row.weight for row in rows], device=model.device)
        path = model.architecture.projection(layer, self._module)
        found = read_at_subjects(model, prompts, keys.shape[1], self._operation, input_of=path)
        keys.index_add_(0, edits, found * weights[:, None])
        if with_hidden:
            bare = [index for index, row in enumerate(rows) if row.is_bare]
            some = [prompts[index] for index in bare]
            hidden[edits[bare]] = read_hidden(model, some, self._last)
        return keys, hidden

    def _measure_all(self, layer: int, *, with_hidden: bool) -> Iterator[_Measured]:
        """Measure all batches; one that memory does not suffice for part by part."""

        def measure(batch: _Batch) -> _Measured:
            return self._measure(batch, layer, with_hidden=with_hidden and batch.is_bare)

        return Halving(self._operation).run_all(self._batches, measure, self._part)

    def _measure(self, batch: _Batch, layer: int, *, with_hidden: bool) -> _Measured:
        """Bring one batch to `layer`, and read what it shows there."""
        visit = Visit.of(
            layer,
            self._last,
            at=batch.layer,
            is_open=batch.opened is not None,
            can_open=self._opens and batch.is_bare,
            goes_on=with_hidden and layer < self._last,
        )
        if batch.layer < layer:
            self._advance(batch, visit)
        projection = self._model.architecture.projection(layer, self._module)
        states = batch.states.to(self._model.device)
        if visit.opens:
            if batch.opened is None:
                opened = OpenBlock.run(
                    self._model, projection, batch.mask, lambda: self._run(batch, states, [layer])
                )
                batch.opened, batch.states = opened.moved(self._kept_on), states.new_empty(0)
            inputs = batch.opened.inputs_at(batch.last)
            states = batch.opened.close(self._model, projection) if visit.onward else states
        else:
            with capture(self._model.model, inputs_of=[projection]) as seen:
                states = self._read(batch, states, layer, everywhere=bool(visit.onward))
            inputs = _at_last(seen.inputs[projection], batch)
        keys = inputs.to(self._model.device, torch.float32)
        if not with_hidden:
            return _Measured(batch, keys, None)
        if visit.onward:
            states = self._run(batch, states, visit.onward[:-1])
            states = self._read(batch, states, visit.onward[-1], everywhere=False)
        return _Measured(batch, keys, at_subjects(states, batch.last).to(keys))

    def _advance(self, batch: _Batch, visit: Visit) -> None:
        """Bring a batch to what enters a layer, with the weights of all before it as they are."""
        if batch.opened is not None and visit.closes:
            projection = self._model.architecture.projection(batch.layer, self._module)
            states = batch.opened.close(self._model, projection)
        else:
            states = batch.states.to(self._model.device)
        states = self._run(batch, states, visit.before)
        # What follows may run out of memory, and the batch then goes on from here.
        batch.states, batch.layer, batch.opened = states.to(self._kept_on), visit.layer, None

    def _part(self, batch: _Batch, places: Sequence[int]) -> _Batch:
        """Some rows of a batch, by themselves, as far as the batch has come."""
        # What blocks are called with besides states cannot be cut: each architecture lays it out
        # in its own way. No critical layer's weights have a say in it.
        part = self._start([batch.rows[place] for place in places])
        width = part.mask.shape[1]
        if batch.opened is None:
            part.states = batch.states[places[0] : places[-1] + 1, :width].clone()
        else:
            part.opened, part.states = batch.opened.part(places, width), batch.states
        part.layer = batch.layer
        return part

    def _run(self, batch: _Batch, states: Tensor, blocks: Sequence[int]) -> Tensor:
        """Run successive blocks, or none; nothing is done about padding where it matters."""
        if not blocks:
            return states
        with skipping_padding(self._model, batch.mask, blocks):
            return batch.calls.run(states, blocks[0], blocks[-1])

    def _read(self, batch: _Batch, states: Tensor, layer: int, *, everywhere: bool) -> Tensor:
        """Run one block; unless `everywhere`, only what it says at the subjects will be read."""
        if everywhere:
            return self._run(batch, states, [layer])
        mlps = find_mlps(self._model, [layer])
        rows = torch.arange(len(batch.last), device=batch.last.device)
        with (
            skipping_padding(self._model, batch.mask, [layer], besides=mlps),
            only_at(mlps, Places(rows, batch.last)),
        ):
            return batch.calls.run(states, layer, layer)

    def _agrees(self, rows: Sequence[SweepRow]) -> bool:
        """Whether rows, run block by block, come to what the model's own forward comes to."""
        if not rows:
            return True
        longest = max(range(len(rows)), key=lambda index: len(rows[index].own))
        halving = Halving(self._operation)
        return all(halving.run([rows[0], rows[longest]], self._agree))

    def _agree(self, some: Sequence[SweepRow]) -> bool:
        model, last = self._model, self._last
        whole = [
            PromptRow((*row.context, *row.own), len(row.context + row.own) - 1) for row in some
        ]
        expected = read_hidden(model, whole, last)
        batch = self._start(some)
        if batch.states.dim() != 3:  # Gemma 3n has several residual streams
            return False
        with torch.no_grad():
            states = batch.calls.run(batch.states, self._first, last)
        found = at_subjects(states, batch.last).to(expected)
        return agree(found, expected, model.model.dtype)

    def _can_open(self, rows: Sequence[SweepRow]) -> bool:
        """Whether blocks can be kept open; found out on the first critical one and a row."""
        return all(Halving(self._operation).run(rows[:1], self._can_open_for))

    def _can_open_for(self, rows: Sequence[SweepRow]) -> bool:
        projection = self._model.architecture.projection(self._first, self._module)
        batch = self._start(rows)
        states = batch.states.to(self._model.device)
        with torch.no_grad():
            return can_stay_open(
                self._model,
                projection,
                lambda: batch.calls.run(states, self._first, self._first),
            )

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
        calls.entry = states.new_empty(0)  # it is not to be kept twice
        device = model.device
        return _Batch(
            rows=rows,
            layer=first,
            edits=torch.tensor([row.edit for row in rows], device=device),
            weights=torch.tensor([row.weight for row in rows], device=device),
            last=torch.tensor([len(row.own) - 1 for row in rows], device=device),
            mask=mask,
            is_bare=rows[0].is_bare,
            calls=calls,
            states=states,
        )


def _at_last(inputs: Tensor, batch: _Batch) -> Tensor:
    """Where rows end, what a module was given: everywhere, at all tokens, or at the ends alone."""
    flat = by_token(inputs)
    if len(flat) == batch.mask.numel():
        return at_subjects(flat, batch.last)
    if len(flat) == len(batch.last):
        return flat
    return flat[((batch.last + 1).cumsum(dim=0) - 1).to(flat.device)]
