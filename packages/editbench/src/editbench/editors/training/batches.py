"""Which facts run together where weights are trained or differentiated, and what that costs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from editbench.costs.stage import Forward, StageCost
from editbench.editors.subject_tokens import PromptRow, target_row
from editbench.editors.training.target_likelihood import training_row
from editbench.models.batches import Padded
from editbench.models.decoder_size import DecoderSize
from editbench.models.editable import EditableModel
from editbench.models.memory_budget import MemoryBudget
from editbench.requests import EditRequest

_COPIES = 4 * 4 + 2 * 8  # bytes a trained weight: master, gradient, Adam's two; before and after


def cut_requests(
    requests: Sequence[EditRequest], batch_size: int
) -> Iterator[Sequence[EditRequest]]:
    """Requests in their order, `batch_size` at a time; the last batch may be smaller."""
    for start in range(0, len(requests), batch_size):
        yield requests[start : start + batch_size]


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
    extent = Padded.of(row.token_ids for row in rows)
    n_reads = max(len(row.target_ids) for row in rows)
    n_beside = _count_beside(model, extent.n_tokens, first, n_trained)
    one = _forward(model, Padded.full(1, extent.width), n_reads, first)
    room = model.memory.batch_bytes(n_beside)
    return int(max(1, min(len(rows), room // one.peak_bytes(model.size))))


def estimate_training(
    model: EditableModel,
    requests: Sequence[EditRequest],
    *,
    name: str,
    first: int,
    n_trained: int,
    batch_size: int,
    n_epochs: int,
    orders: Sequence[Sequence[EditRequest]] | None = None,
    end_id: int | None = None,
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
        orders: The facts in the order of each epoch, where batches are drawn anew, so that no
            states are kept; None where batches stay.
        end_id: What ends every target; None for nothing.
    """
    size = model.size
    n_fitting = count_fitting(model, requests, first=first, n_trained=n_trained)
    total = StageCost(name)
    n_batches = n_tokens = 0
    # Batches that stay are run up to the first block once, and then from there in every epoch.
    n_times = n_epochs if orders is None else 1
    rows_of = {request: training_row(model, request, end_id) for request in requests}
    for order in [requests] if orders is None else orders:
        for some in cut_requests(order, batch_size):
            rows = [rows_of[request] for request in some]
            n_batches += 1
            n_tokens += Padded.of(row.token_ids for row in rows).n_padded
            total += Forward(Padded.of(row.token_ids for row in rows), first).cost(size)
            for start in range(0, len(rows), n_fitting):
                total += _estimate_steps(model, rows[start : start + n_fitting], first, n_times)
    n_orders = 1 if orders is None else len(orders)
    n_kept = n_tokens // n_orders
    return replace(
        total,
        n_tokens=n_tokens * (1 + n_epochs) if orders is None else n_tokens,
        n_flops=total.n_flops + n_times * 2 * n_trained * n_tokens,
        n_read_bytes=total.n_read_bytes + n_batches * n_times * n_trained * _COPIES,
        n_peak_bytes=total.n_peak_bytes + _count_beside(model, n_kept, first, n_trained),
        chunks=f"{n_batches // n_orders:,} batches of at most {batch_size:,} edits, "
        f"{n_epochs} epochs",
    )


def _estimate_steps(
    model: EditableModel, rows: Sequence[PromptRow], first: int, n_epochs: int
) -> StageCost:
    """All passes forwards and backwards over facts that run together."""
    n_reads = sum(len(row.target_ids) for row in rows)
    forward = _forward(model, Padded.of(row.token_ids for row in rows), n_reads, first)
    return replace(forward, n_times=n_epochs).cost(model.size)


def _forward(model: EditableModel, rows: Padded, n_reads: int, first: int) -> Forward:
    n_blocks = model.size.n_layers - first
    return Forward(rows, n_blocks, n_reads=n_reads, has_gradients=True)


def _count_beside(model: EditableModel, n_tokens: int, first: int, n_trained: int) -> int:
    """Bytes that are there beside what runs: of what is trained, and of states in front of it."""
    kept = _count_kept(model.size, n_tokens) if n_trained else 0
    return n_trained * _COPIES + kept + model.memory.waiting_bytes(first)


def _count_kept(size: DecoderSize, n_tokens: int) -> int:
    """Bytes of states that `keep_states` keeps."""
    n_numbers = 2 * size.d_model + size.d_mlp
    return min(MemoryBudget.kept_bytes, n_tokens * n_numbers * size.itemsize)
