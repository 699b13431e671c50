"""What the optimization of target hidden states costs, and what of it there is to do."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Self

from editbench.costs.stage import Known, StageCost, add_stages
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.chunks import chunk_tasks, make_tasks
from editbench.editors.targets.groups import distinct_groups, group_requests
from editbench.editors.targets.optimizer import TargetTask
from editbench.editors.targets.replayed_rows import ReplayedRows
from editbench.editors.targets.settings import TargetSettings
from editbench.models.decoder_size import DecoderSize
from editbench.models.editable import EditableModel
from editbench.replay.prefix_states import can_share, count_shared
from editbench.requests import EditRequest

STAGE = "target hidden states"


def find_unknown(
    model: EditableModel,
    requests: Sequence[EditRequest],
    layer: int,
    settings: TargetSettings,
    prefixes: Sequence[str],
    folder: Path | None,
    known: Known,
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
        folder: The folder of the cache; None keeps nothing.
        known: What earlier work leaves in it; these edits are added.
        share_subjects: Whether all requests about a subject share an offset.
        warm_start: Whether offsets start from those of finished edits.
    """
    groups = group_requests(requests, share_subjects=share_subjects)
    first = distinct_groups(groups)
    if folder is None:
        return make_tasks(model.tokens, requests, prefixes, first)
    cache = TargetCache(folder)
    keys = cache.keys(model, requests, groups, layer, settings, prefixes, warm_start=warm_start)
    held = cache.read(keys)
    is_new = [known.add(STAGE, key) and index not in held for index, key in enumerate(keys)]
    unknown = [group for group in first if any(is_new[member] for member in group)]
    return make_tasks(model.tokens, requests, prefixes, unknown)


def plan_targets(
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
    size = model.size
    chunks = list(chunk_tasks(model, tasks, layer, token_budget))
    shares = can_share(model)
    stages = [_Replay.of(chunk, shares=shares).cost(size, layer, settings) for chunk in chunks]
    (stage,) = add_stages(stages) or [StageCost(STAGE)]
    peak = stage.n_peak_bytes + (model.waiting_bytes(layer + 1) if chunks else 0)
    return replace(stage, n_peak_bytes=peak, chunks=_describe(chunks, settings))


def _describe(chunks: Sequence[Sequence[TargetTask]], settings: TargetSettings) -> str:
    if not chunks:
        return "none: all are known"
    largest = max(len(chunk) for chunk in chunks)
    if largest == 1:
        return f"one by one, {settings.n_steps} steps"
    noun = "chunk" if len(chunks) == 1 else "chunks"
    return f"{len(chunks)} {noun} of at most {largest:,} edits, {settings.n_steps} steps"


@dataclass(frozen=True, slots=True)
class _Replay:
    """What is run for one chunk of edits: the prompts, and the rows of the KL term."""

    prompts: ReplayedRows
    essence: ReplayedRows
    together: ReplayedRows
    bare: tuple[int, int]

    @classmethod
    def of(cls, tasks: Sequence[TargetTask], *, shares: bool) -> Self:
        """Count the tokens of a chunk; `shares` says whether rows can share their beginnings."""
        essence = [task.essence for task in tasks]
        columns = [*zip_longest(*(task.prompts for task in tasks)), essence]
        *n_shared, n_essence = (
            count_shared([row.token_ids[: row.subject_last] for row in column if row is not None])
            if shares
            else 0
            for column in columns
        )
        prompts = [row for task in tasks for row in task.prompts]
        shared = [n for task in tasks for n in n_shared[: len(task.prompts)]]
        shared += [n_essence] * len(tasks)
        bare = [len(task.bare.token_ids) for task in tasks]
        is_apart = any(task.bare_prompt is None for task in tasks)
        return cls(
            prompts=ReplayedRows.of(prompts, shared[: len(prompts)]),
            essence=ReplayedRows.of(essence, shared[len(prompts) :]),
            together=ReplayedRows.of([*prompts, *essence], shared),
            bare=(len(bare), max(bare)) if is_apart else (0, 0),
        )

    def groups(self, size: DecoderSize, settings: TargetSettings) -> list[ReplayedRows]:
        """What runs as one: prompts and KL rows, unless they are read at different layers."""
        if settings.reads_last_layer(size.n_layers):
            return [self.together]
        return [self.prompts, self.essence]

    def cost(self, size: DecoderSize, layer: int, settings: TargetSettings) -> StageCost:
        """All steps, and what comes before them.

        Args:
            size: The model's sizes.
            layer: The block behind which offsets are added.
            settings: How offsets are optimized.
        """
        n_blocks = size.n_layers - 1 - layer
        n_bare, bare_width = self.bare
        n_tokens = n_bare * bare_width
        n_flops = (layer + 1) * size.block_flops(n_tokens, n_tokens * bare_width)
        n_forwards, n_backwards = settings.n_steps, settings.n_steps - 1
        groups = self.groups(size, settings)
        for rows in groups:
            forward, backward = rows.replay_flops(size, n_blocks)
            n_flops += (
                rows.prepare_flops(size, n_blocks) + n_forwards * forward + n_backwards * backward
            )
            n_tokens += rows.n_prefix_tokens + (1 + n_forwards) * rows.n_tokens
        n_replays = len(groups) * (n_forwards + 2 * n_backwards)
        n_once = layer + 1 + len(groups) * 3 * size.n_layers
        n_passes = len(groups) * (n_forwards + n_backwards) * n_blocks / size.n_layers
        return StageCost(
            name=STAGE,
            n_tokens=n_tokens,
            n_flops=n_flops,
            n_read_bytes=size.n_weight_bytes * (n_passes + n_once / size.n_layers),
            n_block_calls=n_replays * n_blocks + n_once,
            n_peak_bytes=sum(rows.peak_bytes(size, n_blocks) for rows in groups),
        )
