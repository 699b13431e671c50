"""What training weights on targets costs."""

from collections.abc import Sequence

from editbench.costs.stage import StageCost
from editbench.editors.parts.subject_tokens import target_row
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest

_MOST_KEPT = 2**30  # bytes of states that `keep_states` keeps
_COPIES = 4 * 4 + 2 * 8  # bytes a trained weight: master, gradient, Adam's two; before and after


def plan_training(
    model: EditableModel,
    requests: Sequence[EditRequest],
    *,
    name: str,
    first: int,
    n_trained: int,
    batch_size: int,
    n_epochs: int,
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
        kept = n_own * (n_blocks * size.kept_bytes(width) + 2 * size.working_bytes(width))
        peak = max(peak, kept + n_reads * size.logit_bytes(with_loss=True))
    n_steps = n_batches * n_epochs
    states = n_tokens * (2 * size.d_model + size.d_mlp) * size.itemsize
    return StageCost(
        name=name,
        n_tokens=n_tokens * (1 + n_epochs),
        n_flops=once + n_epochs * each,
        n_read_bytes=3 * n_steps * (size.n_weight_bytes * n_blocks / size.n_layers)
        + n_steps * n_trained * _COPIES,
        n_block_calls=n_batches * first + 3 * n_steps * n_blocks,
        n_peak_bytes=peak + min(_MOST_KEPT, states) + n_trained * _COPIES,
        chunks=f"{n_batches:,} batches of at most {batch_size:,} edits, {n_epochs} epochs",
    )
