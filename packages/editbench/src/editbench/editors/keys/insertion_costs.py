"""What inserting facts into weights costs: second moments, keys, and the systems to be solved."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Self

from editbench.costs.stage import Known, StageCost
from editbench.editors.base import Resources
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.keys.sweep_rows import (
    SweepRow,
    batch_rows,
    count_kept,
    make_rows,
)
from editbench.editors.placement import (
    count_solve_bytes,
    place_second_moments,
    place_states,
)
from editbench.editors.second_moments.collection import SamplingStop, TokenCount
from editbench.editors.second_moments.obtaining import cached_path
from editbench.models.architecture import ProjectionKind
from editbench.models.decoder_size import DecoderSize
from editbench.models.editable import EditableModel
from editbench.replay.prefix_states import can_share
from editbench.requests import EditRequest

_FLOAT64 = 8
_FLOAT32 = 4
_TYPICAL_LENGTH = 512  # tokens of a text of a corpus
_EIGENVECTORS = 9  # times d³ operations: reduced to a band, divided and conquered, multiplied back
_EIGEN_MATRICES = 5  # C, its copy, the eigenvectors and what LAPACK works in
_WIDENED = 2**25  # numbers of keys that are in float64 at once


def plan_second_moments(
    model: EditableModel,
    layers: Sequence[int],
    n_tokens: TokenCount,
    resources: Resources,
    known: Known,
    module: ProjectionKind = "mlp",
) -> list[StageCost]:
    """What obtaining second moments costs: nothing if they are in a file or in the cache.

    Args:
        model: The model, with weights or without.
        layers: Critical layers.
        n_tokens: Tokens to collect from; see `collect_second_moments`.
        resources: Names the file, the cache folder and the corpus.
        known: What earlier work leaves in the cache; these are added.
        module: Whose output projection's inputs are the keys.
    """
    if resources.second_moments is not None:
        return []
    if resources.cache is not None:
        if not known.add("second moments", model.fingerprint, tuple(layers), n_tokens, module):
            return []
        corpus = resources.corpus  # a plan without weights does without
        if corpus is not None and (
            cached_path(resources.cache, model, corpus, layers, n_tokens, module).exists()
        ):
            return []
    return [_plan_collection(model, layers, n_tokens, module)]


def _plan_collection(
    model: EditableModel, layers: Sequence[int], wanted: TokenCount, module: ProjectionKind
) -> StageCost:
    """Collecting second moments of all layers in one pass, if the corpus has enough text."""
    size = model.size
    d_key = model.d_key(layers[0], module)
    n_blocks = max(layers) + 1
    length = min(model.max_positions or _TYPICAL_LENGTH, _TYPICAL_LENGTH)
    n_parts, n_tokens = (2, SamplingStop(d_key).end) if wanted == "auto" else (1, int(wanted))
    device, budget = place_second_moments(model, len(layers), d_key, n_parts)
    is_on_device = device == model.device
    n_kept = n_parts * len(layers) * d_key**2 * _FLOAT64 if is_on_device else 0
    budget = min(budget, n_tokens)
    n_passes = -(-n_tokens // budget)
    place = "" if is_on_device else ", matrices in main memory"
    keys = budget * (len(layers) + 1) * d_key * size.itemsize
    return StageCost(
        name="second moments",
        n_tokens=n_tokens,
        n_flops=n_blocks * size.block_flops(n_tokens, n_tokens * length),
        n_double_flops=len(layers) * n_tokens * d_key**2,  # one triangle
        n_read_bytes=n_passes * size.n_weight_bytes * n_blocks / size.n_layers,
        n_block_calls=n_passes * n_blocks,
        n_peak_bytes=n_kept + keys + budget * size.working_bytes(length) + _WIDENED * _FLOAT64,
        chunks=f"{n_passes:,} batches of at most {budget:,} tokens{place}",
    )


def plan_insertion(
    model: EditableModel,
    requests: Sequence[EditRequest],
    prefixes: ContextPrefixes,
    weighting: str,
    layers: Sequence[int],
    module: ProjectionKind = "mlp",
) -> list[StageCost]:
    """What measuring keys and residuals of all layers costs, and solving for their updates.

    What the last critical layer says before any update is taken to be known, as MEMIT knows it.

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
    row_batches = batch_rows(rows, model.token_budget)
    batches = [_RowBatch.of(batch) for batch in row_batches]
    contexts = {row.context for row in rows if row.context}
    shared = _RowBatch.of_contexts(contexts)
    # They are run to the end of the model first, and then again as the weights change.
    n_shared = size.n_layers + layers[-1] - layers[0] + len(layers)
    n_flops = n_shared * shared.block_flops(size) if contexts else 0.0
    n_passes = n_shared if contexts else 0
    n_edits, d_key = len(requests), model.d_key(layers[0], module)
    opens = (
        module == "mlp" and len(layers) > 1
    )  # but where there is a norm behind it, which only a run finds out
    for batch in batches:
        n_whole, n_read, n_closed = _count_blocks(layers, goes_on=batch.is_bare, opens=opens)
        n_flops += n_whole * batch.block_flops(size) + n_read * batch.read_flops(size)
        n_flops += n_closed * 2 * d_key * size.d_model * batch.n_tokens
        n_passes += n_whole + n_read
    kept = count_kept(row_batches, size.d_model, d_key if opens else 0) * size.itemsize
    is_on_device = place_states(model, kept, n_edits, d_key) == model.device
    n_kept = kept if is_on_device else 0
    found = n_edits * (d_key + 2 * size.d_model) * _FLOAT32
    working = max((batch.working_bytes(size) for batch in batches), default=0)
    place = "" if is_on_device else ", states in main memory"
    n_batches = len(batches) + bool(contexts)
    cost = StageCost(
        name="keys",
        n_tokens=sum(batch.n_padded for batch in batches) + shared.n_padded,
        n_flops=n_flops,
        n_read_bytes=n_passes * size.n_weight_bytes / size.n_layers,
        n_block_calls=n_passes,
        n_peak_bytes=n_kept + found + working,
        chunks=f"{n_batches:,} batches of at most {model.token_budget:,} tokens{place}",
    )
    solve = plan_solve(model, n_edits, layers, module)
    return [cost, replace(solve, n_peak_bytes=n_kept + solve.n_peak_bytes)]


@dataclass(frozen=True, slots=True)
class _RowBatch:
    """Rows that run together, as `LayerSweep` has them.

    Attributes:
        n_rows: Rows.
        n_tokens: Their own tokens.
        width: Of the longest.
        context: Tokens before them that are run elsewhere, in the longest row.
        is_bare: Whether these are rows of the bare prompt.
    """

    n_rows: int
    n_tokens: int
    width: int
    context: int = 0
    is_bare: bool = False

    @classmethod
    def of(cls, rows: Sequence[SweepRow]) -> Self:
        """Count the tokens of a batch of rows."""
        return cls(
            n_rows=len(rows),
            n_tokens=sum(len(row.own) for row in rows),
            width=max(len(row.own) for row in rows),
            context=max(len(row.context) for row in rows),
            is_bare=rows[0].is_bare,
        )

    @classmethod
    def of_contexts(cls, contexts: Collection[Sequence[int]]) -> Self:
        """Count the tokens of what rows begin with."""
        lengths = [len(context) for context in contexts]
        return cls(len(lengths), sum(lengths), max(lengths, default=0))

    @property
    def n_padded(self) -> int:
        return self.n_rows * self.width

    @property
    def n_keys(self) -> int:
        """What a token attends to."""
        return self.context + self.width

    def working_bytes(self, size: DecoderSize) -> int:
        """Bytes while one block runs; what it sees of the context is copied for each row."""
        copied = 2 * self.n_rows * self.context * size.d_cache * size.itemsize
        return self.n_padded * size.working_bytes(self.n_keys) + copied

    def block_flops(self, size: DecoderSize) -> float:
        """One block's forward pass."""
        return size.block_flops(self.n_tokens, self.n_padded * self.n_keys)

    def read_flops(self, size: DecoderSize) -> float:
        """The same, if only what it says at the subjects is read: the MLP works there alone."""
        n_pairs = self.n_padded * self.n_keys
        return size.block_flops(self.n_tokens, n_pairs, n_mlp_tokens=self.n_rows)


def _count_blocks(layers: Sequence[int], *, goes_on: bool, opens: bool) -> tuple[int, int, int]:
    """How often rows are sent through a block.

    All rows go through each block in front of the last critical one, and are read at each critical
    one. What the last one says is asked of bare prompts after each update, so they go on to it from
    there; before any update it is known already.

    Args:
        layers: Critical layers.
        goes_on: Whether these are bare prompts.
        opens: Whether blocks are kept open, so that going on and coming back take one run.

    Returns:
        Blocks that all of the rows' tokens go through, blocks that are read at the subjects alone,
        and projections besides those.
    """
    last, between = layers[-1], layers[1:-1]
    if not goes_on:
        return last, len(layers), 0
    if not opens:
        return last + sum(last - layer for layer in between), len(layers), 0
    n_again = sum(last - layer - 1 for layer in between)
    return last + n_again, len(between) + 1, len(between)


def plan_solve(
    model: EditableModel,
    n_edits: int,
    layers: Sequence[int],
    module: ProjectionKind = "mlp",
    *,
    one_by_one: bool = False,
) -> StageCost:
    """What solving for the updates of all layers costs, with nothing factorized beforehand.

    Args:
        model: The model, with weights or without.
        n_edits: How many facts.
        layers: Critical layers.
        module: Whose output projection is written to.
        one_by_one: Whether each fact has a system of its own, with the same second moment.
    """
    d_value, d_key = model.architecture.d_model, model.d_key(layers[0], module)
    n, d = float(n_edits), float(d_key)
    solved = d**3 / 3 + (2 if one_by_one else 3) * n * d**2
    added = 2 * min(n, d) * d * d_value  # multiplied out once, to be added to the weight
    return StageCost(
        name="solve",
        n_double_flops=len(layers) * (solved + added),
        n_peak_bytes=count_solve_bytes(1 if one_by_one else n_edits, d_key, d_value),
        chunks=f"{len(layers)} layer{'s' * (len(layers) > 1)}, {d_key:,} × {d_key:,}",
    )


def plan_null_spaces(
    model: EditableModel, layers: Sequence[int], module: ProjectionKind = "mlp"
) -> StageCost:
    """What finding the null spaces of all layers' second moments costs, once a stream.

    Args:
        model: The model, with weights or without.
        layers: Critical layers.
        module: Whose output projection is written to.
    """
    d_key = model.d_key(layers[0], module)
    return StageCost(
        name="null spaces",
        n_double_flops=len(layers) * _EIGENVECTORS * float(d_key) ** 3,
        n_peak_bytes=_EIGEN_MATRICES * d_key**2 * _FLOAT64,
        chunks=f"{len(layers)} layer{'s' * (len(layers) > 1)}, {d_key:,} × {d_key:,}",
    )
