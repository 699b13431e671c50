"""Rows whose keys make a fact's mean key, in batches, and what is run of each layer by layer.

`LayerSweep` and its estimate go through the same batches, and send each through the same blocks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from editbench.costs.stage import Forward, StageCost, sum_cost
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.solve_estimates import count_solve_bytes, estimate_solve
from editbench.editors.subject_tokens import key_row
from editbench.models.architecture import ProjectionKind
from editbench.models.batches import Batch, Padded, batches_of_like_length
from editbench.models.editable import EditableModel
from editbench.models.shared_prefix import can_share, count_shared
from editbench.requests import EditRequest

_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One fact after one context prefix, up to its subject's last token.

    Attributes:
        edit: Which fact.
        weight: What its key weighs in the fact's mean key.
        is_bare: Whether the prefix is empty.
        context: Leading tokens that all facts have after this prefix; run once for all of them.
        own: The tokens behind those, at least one; the last is the subject's.
    """

    edit: int
    weight: float
    is_bare: bool
    context: tuple[int, ...]
    own: tuple[int, ...]


def make_rows(
    model: EditableModel,
    requests: Sequence[EditRequest],
    prefixes: ContextPrefixes,
    weighting: str | float,
    *,
    share: bool,
) -> list[SweepRow]:
    """Put all facts after all prefixes, and after none in any case.

    Args:
        model: The model, for its tokens.
        requests: The facts.
        prefixes: Context prefixes.
        weighting: See `ContextPrefixes.weights`.
        share: Whether what all rows of a prefix begin with is run by itself.
    """
    weighted = dict.fromkeys(["", *prefixes.flat], 0.0)
    for prefix, weight in zip(prefixes.flat, prefixes.weights(weighting), strict=True):
        weighted[prefix] += weight
    made = []
    for prefix, weight in weighted.items():
        rows = [key_row(model.tokens, request, prefix).token_ids for request in requests]
        n = count_shared([row[:-1] for row in rows]) if share and prefix else 0
        made += [
            SweepRow(edit, weight, prefix == "", row[:n], row[n:]) for edit, row in enumerate(rows)
        ]
    return made


def batch_rows(rows: Sequence[SweepRow], token_budget: int) -> Iterator[Batch[SweepRow, Padded]]:
    """Rows that run together: of like length; all of the bare prompt, or all behind a context."""
    kinds: dict[tuple[bool, bool], list[SweepRow]] = {}
    for row in rows:
        kinds.setdefault((row.is_bare, bool(row.context)), []).append(row)
    for some in kinds.values():
        for batch in batches_of_like_length([row.own for row in some], token_budget):
            yield Batch([some[index] for index in batch.rows], batch.extent)


def count_kept(batches: Sequence[Batch[SweepRow, Padded]], d_model: int, d_key: int) -> int:
    """Numbers that are kept of batches from layer to layer.

    Args:
        batches: Rows that run together.
        d_model: Width of a state.
        d_key: Width of a key, of which those of bare prompts are kept; 0 keeps none.
    """
    return sum(
        batch.extent.n_padded * (d_model + (d_key if batch.rows[0].is_bare else 0))
        for batch in batches
    )


@dataclass(frozen=True, slots=True)
class Visit:
    """What a batch does to be measured at a critical layer, and to be ready for the next one.

    Attributes:
        layer: The layer.
        closes: Whether the block it comes from has been kept open: its projection comes first.
        before: Blocks that then bring the batch to the layer.
        opens: Whether the layer's block is kept open, so that going on and coming back take one
            run.
        onward: Blocks behind the layer up to the last critical one, which is read at the subjects
            alone; empty if the batch does not go on.
    """

    layer: int
    closes: bool
    before: range
    opens: bool
    onward: range

    @classmethod
    def of(
        cls, layer: int, last: int, *, at: int, is_open: bool, can_open: bool, goes_on: bool
    ) -> "Visit":
        """The visit of a batch.

        Args:
            layer: The critical layer.
            last: The last critical layer.
            at: The layer whose block the batch has come to.
            is_open: Whether that block has run but for its projection.
            can_open: Whether the layer's block can be kept open.
            goes_on: Whether it is asked what the last critical layer says.
        """
        return cls(
            layer,
            closes=is_open and at < layer,
            before=range(at + (is_open and at < layer), layer),
            opens=can_open and layer < last,
            onward=range(layer + 1, last + 1) if goes_on else range(0),
        )


def estimate_insertion(
    model: EditableModel,
    requests: Sequence[EditRequest],
    prefixes: ContextPrefixes,
    weighting: str | float,
    layers: Sequence[int],
    module: ProjectionKind = "mlp",
) -> tuple[StageCost, StageCost]:
    """What measuring keys and hidden states at all layers costs, and solving for their updates.

    What the last critical layer says before any update is taken to be known, as MEMIT knows it; and
    self-checks to have gone well.

    Args:
        model: The model, with weights or without.
        requests: The facts.
        prefixes: Context prefixes.
        weighting: See `ContextPrefixes.weights`.
        layers: Critical layers.
        module: Whose output projection is written to.
    """
    size = model.size
    rows = make_rows(model, requests, prefixes, weighting, share=can_share(model))
    row_batches = list(batch_rows(rows, model.memory.tokens))
    n_edits, d_key = len(requests), model.d_key(layers[0], module)
    # But where there is a norm behind the MLP, which only a run finds out.
    opens = module == "mlp" and len(layers) > 1
    total = StageCost("keys")
    contexts = Padded.of({row.context for row in rows if row.context})
    if contexts.n_rows:
        # They are run to the end of the model first, and then again as the weights change.
        n_blocks = size.n_layers + layers[-1] - layers[0] + len(layers)
        total += Forward(contexts, n_blocks).cost(size)
    for batch in row_batches:
        forwards, n_closed = _sweep(batch, layers, opens=opens)
        cost = sum_cost("keys", forwards, size)
        n_flops = cost.n_flops + n_closed * 2 * d_key * size.d_model * batch.extent.n_tokens
        total += replace(cost, n_tokens=batch.extent.n_padded, n_flops=n_flops)
    kept = count_kept(row_batches, size.d_model, d_key if opens else 0) * size.itemsize
    beside = count_solve_bytes(n_edits, d_key, size.d_model)
    is_on_device = model.memory.place(kept + beside) == model.device
    n_kept = (kept if is_on_device else 0) + n_edits * (d_key + 2 * size.d_model) * _FLOAT32
    place = "" if is_on_device else ", states in main memory"
    n_batches = len(row_batches) + bool(contexts.n_rows)
    keys = replace(
        total,
        n_tokens=sum(batch.extent.n_padded for batch in row_batches) + contexts.n_padded,
        n_peak_bytes=total.n_peak_bytes + n_kept,
        chunks=f"{n_batches:,} batches of at most {model.memory.tokens:,} tokens{place}",
    )
    solve = estimate_solve(model, n_edits, layers, module)
    return keys, replace(solve, n_peak_bytes=solve.n_peak_bytes + n_kept)


def _sweep(
    batch: Batch[SweepRow, Padded], layers: Sequence[int], *, opens: bool
) -> tuple[list[Forward], int]:
    """What a batch runs at all layers, and how many projections besides."""
    n_before = max(len(row.context) for row in batch.rows)
    is_bare = batch.rows[0].is_bare
    n_whole = n_read = n_closed = at = 0
    is_open = False
    for layer in layers:
        goes_on = is_bare and layers[0] < layer < layers[-1]
        visit = Visit.of(
            layer, layers[-1], at=at, is_open=is_open, can_open=opens and is_bare, goes_on=goes_on
        )
        is_whole = visit.opens or goes_on
        n_whole += len(visit.before) + is_whole + len(visit.onward[:-1])
        n_read += (not is_whole) + goes_on
        n_closed += visit.closes + (visit.opens and goes_on)
        at, is_open = layer, visit.opens
    whole = Forward(batch.extent, n_whole, n_before, is_copied=True)
    # The MLP works at the subjects alone, which is what reading means there.
    read = replace(whole, n_blocks=1, n_times=n_read, n_mlp_tokens=batch.extent.n_rows)
    return [whole, read], n_closed
