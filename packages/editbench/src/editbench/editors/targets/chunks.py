"""Edits in chunks that are optimized together, as large as memory allows, and of like lengths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from editbench.editors.targets.optimizer import TargetTask
from editbench.editors.targets.replayed_rows import ReplayedRows
from editbench.models.decoder_size import DecoderSize
from editbench.models.editable import EditableModel
from editbench.models.growing_batches import grow_batches
from editbench.models.tokens import Tokens
from editbench.requests import EditRequest

# Suffix tokens that are replayed together where memory allows. On a CPU more fall out of its cache;
# a GPU's matrix products are no faster for more, and memory is better left to others.
_CPU_TOKENS = 1_024
_ACCELERATOR_TOKENS = 8_192


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
    model.check_lengths(row.token_ids for task in tasks for row in (*task.prompts, task.essence))
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
        rows = ReplayedRows(
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
