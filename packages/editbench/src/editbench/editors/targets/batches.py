"""Which edits are optimized together, as memory allows, and what that costs.

A chunk is made of edits of like lengths. Running and estimating go through the same chunks, and
within them through the same rows (`TargetRows`).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from editbench.costs.stage import ExpectedCache, Forward, StageCost, sum_cost
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.settings import TargetSettings
from editbench.editors.targets.tasks import (
    TargetRows,
    TargetTask,
    distinct_groups,
    group_requests,
    make_tasks,
)
from editbench.models.batches import NO_ROWS, Batch, Padded, batches
from editbench.models.decoder_size import DecoderSize
from editbench.models.editable import EditableModel
from editbench.models.shared_prefix import can_share
from editbench.replay.offset_forward import OffsetRow
from editbench.requests import EditRequest

STAGE = "target hidden states"


@dataclass(frozen=True, slots=True)
class ChunkExtent:
    """How large a growing chunk is at most, as far as one edit after the other tells.

    Attributes:
        n_edits: Edits, each with a row of the KL term.
        suffixes: Prompts from the offset on.
        prefix: Tokens in front of the offset, in the longest row.
        n_losses: Places at which the target is read.
    """

    n_edits: int = 0
    suffixes: Padded = NO_ROWS
    prefix: int = 0
    n_losses: int = 0

    def grown(self, task: TargetTask) -> Self:
        """The extent with one edit more."""
        suffixes = self.suffixes
        for row in task.prompts:
            suffixes = suffixes.grown(row.token_ids[row.subject_last :])
        return replace(
            self,
            n_edits=self.n_edits + 1,
            suffixes=suffixes,
            prefix=max(self.prefix, task.prefix_width),
            n_losses=self.n_losses + sum(len(row.target_ids) for row in task.prompts),
        )

    def peak_bytes(self, model: EditableModel, n_blocks: int) -> float:
        """Bytes besides the weights, at most."""
        n_rows, width = self.suffixes.n_rows + self.n_edits, self.suffixes.width
        rows = Padded.full(n_rows, width)
        n_reads = self.n_edits + min(self.n_losses, model.memory.reads_with_loss)
        forward = Forward(rows, n_blocks, self.prefix, n_reads=n_reads, has_gradients=True)
        return forward.peak_bytes(model.size)


def chunk_tasks(
    model: EditableModel,
    tasks: Sequence[TargetTask],
    layer: int,
    token_budget: int | None = None,
) -> Iterator[Batch[TargetTask, ChunkExtent]]:
    """Divide edits into chunks of like lengths: of suffixes first, then of prefixes.

    Args:
        model: The model, with weights or without.
        tasks: The edits.
        layer: The block behind which offsets are added.
        token_budget: Padded suffix tokens that a chunk may hold; None chooses by device and memory.

    Returns:
        Edits that are optimized together, the shortest first.

    Raises:
        RequestError: A prompt with its target is longer than the model takes.
    """
    model.check_lengths(row.token_ids for task in tasks for row in (*task.prompts, task.kl_row))
    most = model.memory.gradient_tokens if token_budget is None else token_budget
    memory = model.memory.batch_bytes(model.memory.waiting_bytes(layer + 1))
    n_blocks = model.size.n_layers - 1 - layer

    def is_full(extent: ChunkExtent) -> bool:
        return extent.suffixes.n_padded > most or extent.peak_bytes(model, n_blocks) > memory

    shortest_first = sorted(tasks, key=lambda task: (task.suffix_width, task.prefix_width))
    return batches(shortest_first, ChunkExtent(), is_full)


def find_unknown(
    model: EditableModel,
    requests: Sequence[EditRequest],
    layer: int,
    settings: TargetSettings,
    prefixes: Sequence[str],
    cache: TargetCache,
    expected: ExpectedCache,
    *,
    share_subjects: bool,
    warm_start: bool,
) -> list[TargetTask]:
    """What there is to optimize that neither the cache holds nor earlier work of a plan will find.

    Args:
        model: The model, with weights or without.
        requests: The facts.
        layer: The block behind which offsets are added.
        settings: How they are optimized.
        prefixes: Context prefixes.
        cache: The cache.
        expected: What earlier work leaves in it; these edits are added.
        share_subjects: Whether all requests about a subject share an offset.
        warm_start: Whether offsets start from those of finished edits.
    """
    groups = group_requests(requests, share_subjects=share_subjects)
    first = distinct_groups(groups)
    keys = cache.keys(model, requests, groups, layer, settings, prefixes, warm_start=warm_start)
    held = cache.read(keys)
    is_new = [
        (cache.keeps_nothing or expected.add(STAGE, key)) and index not in held
        for index, key in enumerate(keys)
    ]
    unknown = [group for group in first if any(is_new[member] for member in group)]
    return make_tasks(model.tokens, requests, prefixes, unknown)


def estimate_targets(
    model: EditableModel,
    tasks: Sequence[TargetTask],
    layer: int,
    settings: TargetSettings,
    token_budget: int | None = None,
) -> StageCost:
    """What optimizing the targets of some edits costs, if none of them stops early.

    Args:
        model: The model, with weights or without.
        tasks: The edits.
        layer: The block behind which offsets are added.
        settings: How they are optimized.
        token_budget: As for `chunk_tasks`.
    """
    total = StageCost(STAGE)
    sizes: list[int] = []
    for chunk in chunk_tasks(model, tasks, layer, token_budget):
        total += _estimate_chunk(model, chunk.rows, layer, settings)
        sizes.append(len(chunk.rows))
    if not sizes:
        return replace(total, chunks="none: all are known")
    noun = "chunk" if len(sizes) == 1 else "chunks"
    parts = f"{len(sizes)} {noun} of at most {max(sizes):,} edits"
    return replace(
        total,
        n_peak_bytes=total.n_peak_bytes + model.memory.waiting_bytes(layer + 1),
        chunks=f"{'one by one' if max(sizes) == 1 else parts}, {settings.n_steps} steps",
    )


def _estimate_chunk(
    model: EditableModel, tasks: Sequence[TargetTask], layer: int, settings: TargetSettings
) -> StageCost:
    """All steps of one chunk, and what comes before them."""
    size = model.size
    n_blocks = size.n_layers - 1 - layer
    rows = TargetRows.of(tasks)
    groups = [_Replay.of(model, [*rows.prompts, *rows.kl_rows], len(rows.target_ids))]
    if not settings.reads_last_layer(size.n_layers):  # they are read at different layers
        groups = [
            _Replay.of(model, rows.prompts, len(rows.target_ids)),
            _Replay.of(model, rows.kl_rows, 0),
        ]
    total = StageCost(STAGE)
    if rows.bare_rows is None:
        bare = Padded.of(task.bare.token_ids for task in tasks)
        total += Forward(bare, layer + 1).cost(size)
    peak = 0.0
    for group in groups:
        total += sum_cost(STAGE, group.prepare(size, n_blocks), size)
        total += group.steps(model, n_blocks, settings.n_steps)
        peak += group.replay(model, n_blocks).peak_bytes(size)
    return replace(total, n_peak_bytes=max(peak, total.n_peak_bytes))


@dataclass(frozen=True, slots=True)
class _Replay:
    """Rows with an offset each that run together; see `PrefixStates` and `SuffixReplay`.

    Attributes:
        shared: Beginnings that rows share, each once.
        own: What stands between them and the offsets.
        suffixes: Rows from the offset on.
        n_losses: Places at which logits are read for the target's loss, in slices if they are many.
        n_reads: Places at which logits are read.
    """

    shared: Padded
    own: Padded
    suffixes: Padded
    n_losses: int
    n_reads: int

    @classmethod
    def of(cls, model: EditableModel, rows: Sequence[OffsetRow], n_losses: int) -> Self:
        """Count the tokens of rows, of whose reads the first `n_losses` are of targets."""
        shares = can_share(model)
        n_shared = [row.n_shared if shares else 0 for row in rows]
        paired = list(zip(rows, n_shared, strict=True))
        return cls(
            shared=_pad({row.token_ids[:n] for row, n in paired}),
            own=_pad([row.token_ids[n : row.offset_position] for row, n in paired]),
            suffixes=Padded.of(row.token_ids[row.offset_position :] for row in rows),
            n_losses=n_losses,
            n_reads=sum(len(row.read_positions) for row in rows),
        )

    def prepare(self, size: DecoderSize, n_blocks: int) -> list[Forward]:
        """What is run once: prefixes up to the last block, suffixes up to the offset."""
        prefix = self.shared.width + self.own.width
        return [
            Forward(self.shared, size.n_layers - 1),
            Forward(self.own, size.n_layers - 1, self.shared.width),
            Forward(self.suffixes, size.n_layers - n_blocks, prefix),
        ]

    def replay(self, model: EditableModel, n_blocks: int) -> Forward:
        """One replay of the blocks behind the offset, its logits a slice at a time."""
        n_at_once = self.n_reads - max(0, self.n_losses - model.memory.reads_with_loss)
        prefix = self.shared.width + self.own.width
        return Forward(self.suffixes, n_blocks, prefix, n_reads=n_at_once, has_gradients=True)

    def steps(self, model: EditableModel, n_blocks: int, n_steps: int) -> StageCost:
        """All steps, of which the last one only measures.

        In the first block, what works on its input does so at the first position alone. Losses that
        are taken in slices bring their gradients along, in the forward pass.
        """
        size = model.size
        once = replace(self.replay(model, n_blocks), n_reads=self.n_reads)
        forward, backward = once.flops(size)
        spared = 2 * size.n_inward * (self.suffixes.n_tokens - self.suffixes.n_rows)
        if n_blocks > 1:
            forward, backward = forward - spared, backward - spared
        is_sliced = self.n_losses > model.memory.reads_with_loss
        moved = size.head_flops(self.n_losses) if is_sliced else 0.0
        n_calls = (n_steps + 2 * (n_steps - 1)) * n_blocks
        return StageCost(
            STAGE,
            n_tokens=n_steps * self.suffixes.n_padded,
            n_flops=n_steps * (forward + moved) + (n_steps - 1) * (backward - moved),
            n_block_calls=n_calls,
        )


def _pad(rows: Collection[Sequence[int]]) -> Padded:
    """Short rows, of which all of the padding is run."""
    return Padded.full(len(rows), max(map(len, rows)))
