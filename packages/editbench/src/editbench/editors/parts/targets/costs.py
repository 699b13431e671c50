"""What the optimization of target hidden states costs, and how it is divided into chunks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Self

from editbench.costs.stage import Known, StageCost, add_stages
from editbench.editors.parts.replay.prefix_states import count_shared
from editbench.editors.parts.subject_tokens import PromptRow
from editbench.editors.parts.targets.cache import TargetCache
from editbench.editors.parts.targets.groups import distinct_groups, group_requests
from editbench.editors.parts.targets.optimizer import TargetTask
from editbench.editors.parts.targets.settings import TargetSettings
from editbench.models.decoder_size import DecoderSize
from editbench.models.editable import EditableModel
from editbench.models.gaps import ignores_gaps
from editbench.models.growing_batches import grow_batches
from editbench.models.readout import choose_slice_size
from editbench.models.tokens import Tokens
from editbench.requests import EditRequest

STAGE = "target hidden states"

# Suffix tokens that are replayed together where memory allows. On a CPU more fall out of its cache;
# a GPU's matrix products are no faster for more, and memory is better left to others.
_CPU_TOKENS = 1_024
_ACCELERATOR_TOKENS = 8_192


def chunk_tasks(
    model: EditableModel,
    tasks: Sequence[TargetTask],
    layer: int,
    token_budget: int | None = None,
) -> Iterator[list[TargetTask]]:
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
    if tasks:
        every = (row.token_ids for task in tasks for row in (*task.prompts, task.essence))
        longest = max(every, key=len)
        model.check_length(len(longest), model.tokens.decode(longest[:16]))
    if token_budget is None:
        token_budget = _CPU_TOKENS if model.device.type == "cpu" else _ACCELERATOR_TOKENS
    memory = model.work_memory_beside(model.waiting_bytes(layer + 1))
    n_blocks = model.size.n_layers - 1 - layer

    def is_full(extent: _Extent) -> bool:
        is_wide = extent.n_rows * extent.width > token_budget
        return is_wide or extent.peak_bytes(model.size, n_blocks) > memory

    shortest_first = sorted(tasks, key=lambda task: (task.suffix_width, task.prefix_width))
    return grow_batches(shortest_first, _Extent(), is_full)


@dataclass(frozen=True, slots=True)
class _Extent:
    """How large a growing chunk is, as far as that can be told from one edit after the other."""

    n_edits: int = 0
    n_rows: int = 0
    n_reads: int = 0
    prefix: int = 0
    width: int = 0

    def grown(self, task: TargetTask) -> Self:
        """The extent with one edit more."""
        return replace(
            self,
            n_edits=self.n_edits + 1,
            n_rows=self.n_rows + len(task.prompts),
            n_reads=self.n_reads + sum(len(row.target_ids) for row in task.prompts),
            prefix=max(self.prefix, task.prefix_width),
            width=max(self.width, task.suffix_width),
        )

    def peak_bytes(self, size: DecoderSize, n_blocks: int) -> float:
        """Bytes besides the weights, at most."""
        n_rows = self.n_rows + self.n_edits
        rows = _Rows(
            n_rows=n_rows,
            n_distinct=n_rows,
            shared=self.prefix,
            own=0,
            width=self.width,
            n_unpadded=n_rows * self.width,
            n_losses=self.n_reads,
            n_whole=self.n_edits,
        )
        return rows.peak_bytes(size, n_blocks)


def make_tasks(
    tokens: Tokens,
    requests: Sequence[EditRequest],
    prefixes: Sequence[str],
    groups: Sequence[Sequence[int]] | None = None,
) -> list[TargetTask]:
    """Tokenize requests after every context prefix.

    Args:
        tokens: The model's tokenizer.
        requests: The facts.
        prefixes: Context prefixes.
        groups: Which of them are optimized as one, each group once; None is each by itself.
    """
    chosen = [[index] for index in range(len(requests))] if groups is None else groups
    return [
        TargetTask.joined(
            [TargetTask.of(tokens, index, requests[index], prefixes) for index in group]
        )
        for group in chosen
    ]


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
    shares = ignores_gaps(model)
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
class _Rows:
    """Rows with an offset each that run together, padded; see `PrefixStates` and `SuffixReplay`.

    Attributes:
        n_rows: Rows.
        n_distinct: Beginnings that they share.
        shared: Tokens of the longest of these.
        own: Tokens from there to the offset, in the longest row.
        width: Tokens from the offset on, in the longest row.
        n_unpadded: Tokens from the offset on in all rows, which is where maps and MLPs work.
        n_losses: Places at which logits are read for the target's loss, in slices if they are many.
        n_whole: Places whose logits are wanted whole.
    """

    n_rows: int
    n_distinct: int
    shared: int
    own: int
    width: int
    n_unpadded: int
    n_losses: int
    n_whole: int

    @classmethod
    def of(cls, rows: Sequence[PromptRow], n_shared: Sequence[int]) -> Self:
        """Count the tokens of `rows`, of which the first `n_shared` are shared with others."""
        beginnings = {row.token_ids[:n] for row, n in zip(rows, n_shared, strict=True)}
        return cls(
            n_rows=len(rows),
            n_distinct=len(beginnings),
            shared=max(len(beginning) for beginning in beginnings),
            own=max(row.subject_last - n for row, n in zip(rows, n_shared, strict=True)),
            width=max(len(row.token_ids) - row.subject_last for row in rows),
            n_unpadded=sum(len(row.token_ids) - row.subject_last for row in rows),
            n_losses=sum(len(row.target_ids) for row in rows),
            n_whole=sum(not row.target_ids for row in rows),
        )

    @property
    def n_prefix_tokens(self) -> int:
        return self.n_distinct * self.shared + self.n_rows * self.own

    @property
    def n_tokens(self) -> int:
        """Tokens from the offset on."""
        return self.n_rows * self.width

    @property
    def n_reads(self) -> int:
        """Places at which logits are read."""
        return self.n_losses + self.n_whole

    @property
    def n_keys(self) -> int:
        """What a token attends to."""
        return self.shared + self.own + self.width

    def prepare_flops(self, size: DecoderSize, n_blocks: int) -> float:
        """Everything that is run once: prefixes up to the last block, suffixes up to the offset."""
        with_own = self.shared + self.own
        n_pairs = self.n_distinct * self.shared**2 + self.n_rows * self.own * with_own
        prefixes = size.block_flops(self.n_prefix_tokens, n_pairs)
        suffixes = size.block_flops(self.n_unpadded, self.n_tokens * self.n_keys)
        return (size.n_layers - 1) * prefixes + (size.n_layers - n_blocks) * suffixes

    def replay_flops(self, size: DecoderSize, n_blocks: int) -> tuple[float, float]:
        """One replay of the blocks behind the offset, forwards and backwards.

        In the first block, what works on its input does so at the first position alone; in the last
        one, the MLP works where logits are read. Losses that are taken in slices bring their
        gradients along, in the forward pass.
        """
        n_pairs = self.n_tokens * self.n_keys
        forward = n_blocks * size.block_flops(self.n_unpadded, n_pairs)
        forward -= 2 * size.n_mlp * (self.n_unpadded - min(self.n_reads, self.n_unpadded))
        if n_blocks > 1:
            forward -= 2 * size.n_inward * (self.n_unpadded - self.n_rows)
        is_sliced = self.n_losses > choose_slice_size(size.n_logits)
        head = size.head_flops(self.n_reads)
        moved = size.head_flops(self.n_losses) if is_sliced else 0.0
        backward = forward + n_blocks * size.attention_flops(n_pairs) + head - moved
        return forward + head + moved, backward

    def peak_bytes(self, size: DecoderSize, n_blocks: int) -> float:
        prefix_width = self.shared + self.own
        # Blocks that are replayed keep what is cached together with what is new.
        cached = self.n_rows * prefix_width * size.n_cache_bytes * (1 - n_blocks / size.n_layers)
        kept = n_blocks * size.kept_bytes(self.n_keys, n_prefix=prefix_width / self.width)
        working = 2 * size.working_bytes(self.n_keys)  # the gradient is as wide as what it is of
        n_at_once = self.n_whole + min(self.n_losses, choose_slice_size(size.n_logits))
        logits = n_at_once * size.logit_bytes(with_loss=True)
        return cached + self.n_tokens * (kept + working) + logits


@dataclass(frozen=True, slots=True)
class _Replay:
    """What is run for one chunk of edits: the prompts, and the rows of the KL term."""

    prompts: _Rows
    essence: _Rows
    together: _Rows
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
            prompts=_Rows.of(prompts, shared[: len(prompts)]),
            essence=_Rows.of(essence, shared[len(prompts) :]),
            together=_Rows.of([*prompts, *essence], shared),
            bare=(len(bare), max(bare)) if is_apart else (0, 0),
        )

    def groups(self, size: DecoderSize, settings: TargetSettings) -> list[_Rows]:
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
