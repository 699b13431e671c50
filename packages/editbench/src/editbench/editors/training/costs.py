"""What training weights on targets costs, and how many facts there is memory for at once."""

from collections.abc import Sequence

from editbench.costs.stage import StageCost
from editbench.editors.subject_tokens import target_row
from editbench.models.decoder_size import DecoderSize
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest

_MOST_KEPT = 2**30  # bytes of states that `keep_states` keeps
_COPIES = 4 * 4 + 2 * 8  # bytes a trained weight: master, gradient, Adam's two; before and after


def count_fitting(
    model: EditableModel, requests: Sequence[EditRequest], *, first: int, n_trained: int = 0
) -> int:
    """How many facts the device has memory for at once, at least one; all, if nobody knows.

    Args:
        model: The model, with weights or without.
        requests: The facts.
        first: The first block that gradients pass through.
        n_trained: Weights that are trained; with some, states in front of them are kept.
    """
    rows = [target_row(model.tokens, request, "") for request in requests]
    if not rows:
        return 1
    width = max(len(row.token_ids) for row in rows)
    n_reads = max(len(row.target_ids) for row in rows)
    n_beside = n_trained * _COPIES + model.waiting_bytes(first)
    if n_trained:
        n_beside += _count_kept(model.size, sum(len(row.token_ids) for row in rows))
    room = model.work_memory_beside(n_beside)
    return int(max(1, min(len(rows), room // _count_bytes(model.size, 1, width, n_reads, first))))


def _count_bytes(size: DecoderSize, n_rows: int, width: int, n_reads: int, first: int) -> float:
    """Bytes that a forward takes whose gradients are wanted, of block `first` and after."""
    n_blocks = size.n_layers - first
    kept = n_rows * width * (n_blocks * size.kept_bytes(width) + 2 * size.working_bytes(width))
    return kept + n_reads * size.logit_bytes(with_loss=True)


def _count_kept(size: DecoderSize, n_tokens: int) -> int:
    """Bytes of states that `keep_states` keeps."""
    return min(_MOST_KEPT, n_tokens * (2 * size.d_model + size.d_mlp) * size.itemsize)


def plan_training(
    model: EditableModel,
    requests: Sequence[EditRequest],
    *,
    name: str,
    first: int,
    n_trained: int,
    batch_size: int,
    n_epochs: int,
    n_together: int | None = None,
) -> StageCost:
    """What training on the targets costs, if it does not stop early.

    Args:
        model: The model, with weights or without.
        requests: The facts.
        name: The stage.
        first: The first block whose weights are trained: nothing before it is run again.
        n_trained: Weights that are trained.
        batch_size: Facts a step.
        n_epochs: Passes over the facts.
        n_together: Facts of a step that run at once; None is all of them.
    """
    size = model.size
    n_blocks = size.n_layers - first
    once = each = peak = 0.0
    n_tokens = n_batches = 0
    for start in range(0, len(requests), batch_size):
        rows = [
            target_row(model.tokens, request, "")
            for request in requests[start : start + batch_size]
        ]
        width = max(len(row.token_ids) for row in rows)
        n_own, n_reads = len(rows) * width, sum(len(row.target_ids) for row in rows)
        block = size.block_flops(n_own, n_own * width)
        forward = n_blocks * block + size.head_flops(n_reads)
        backward = forward + n_blocks * size.attention_flops(n_own * width)
        once += first * block
        each += forward + backward + 2 * n_trained * n_own
        n_tokens += n_own
        n_batches += 1
        n_at_once = min(n_together or len(rows), len(rows))
        n_read_at_once = -(-n_reads * n_at_once // len(rows))
        peak = max(peak, _count_bytes(size, n_at_once, width, n_read_at_once, first))
    n_steps = n_batches * n_epochs
    return StageCost(
        name=name,
        n_tokens=n_tokens * (1 + n_epochs),
        n_flops=once + n_epochs * each,
        n_read_bytes=3 * n_steps * (size.n_weight_bytes * n_blocks / size.n_layers)
        + n_steps * n_trained * _COPIES,
        n_block_calls=n_batches * first + 3 * n_steps * n_blocks,
        n_peak_bytes=peak
        + _count_kept(size, n_tokens)
        + n_trained * _COPIES
        + model.waiting_bytes(first),
        chunks=f"{n_batches:,} batches of at most {batch_size:,} edits, {n_epochs} epochs",
    )
