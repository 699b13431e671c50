"""Updates as products of thin matrices: exactly, or as well as a rank allows."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from editbench.edits.files import Update
from editbench.edits.update_errors import UpdateErrors
from editbench.edits.weight_edit import frobenius_norm
from editbench.errors import EditError
from memit_core import UpdateFactors


@dataclass(frozen=True, slots=True)
class LowRankUpdates:
    """Updates of bounded rank.

    Attributes:
        factors: Of each parameter, in float32.
        errors: What was cut off.
    """

    factors: Mapping[str, UpdateFactors]
    errors: UpdateErrors


def decompose(update: Update) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of an update, Δ = left diag(values) rightᵀ, in float64.

    Of factors it is found without multiplying them out.

    Returns:
        left `[d_out, r]`, values `[r]` in descending order, right `[d_in, r]`.
    """
    if not isinstance(update, UpdateFactors):
        left, values, transposed = torch.linalg.svd(update.double(), full_matrices=False)
        return left, values, transposed.mT
    left, left_inner = torch.linalg.qr(update.left.double())
    right, right_inner = torch.linalg.qr(update.right.double())
    inner_left, values, inner_right = torch.linalg.svd(
        left_inner @ right_inner.mT, full_matrices=False
    )
    return left @ inner_left, values, right @ inner_right.mT


def lower_ranks(
    updates: Mapping[str, Update], max_rank: int, *, truncate: bool = False
) -> LowRankUpdates:
    """Bring updates of matrices into factors of a rank that is at most `max_rank`.

    Factors that are thin enough stay as they are. A rank is counted as far as float32 tells: by the
    singular values that rounding cannot have made.

    Args:
        updates: By parameter.
        max_rank: The largest rank.
        truncate: Whether a higher rank may be cut, to the best approximation (Eckart and Young).

    Raises:
        EditError: There is no update; one is of no matrix; or of a higher rank, and may not be
            truncated.
    """
    if not updates:
        raise EditError("adapter: the edit changes nothing, got no update. There is none to write.")
    factors: dict[str, UpdateFactors] = {}
    errors = UpdateErrors()
    ranks: dict[str, int] = {}
    for name, update in updates.items():
        if isinstance(update, Tensor) and update.ndim != 2:
            raise EditError(
                f"adapter: it changes matrices alone, got an update of '{name}' of shape "
                f"{list(update.shape)}. Write the whole model: --as model."
            )
        if isinstance(update, UpdateFactors) and update.rank <= max_rank:
            factors[name] = UpdateFactors(update.left.float(), update.right.float())
            errors.squares[name] = 0.0, frobenius_norm(update) ** 2
            continue
        left, values, right = decompose(update)
        shape = (len(left), len(right))
        least = max(shape) * torch.finfo(torch.float32).eps * float(values[0])
        rank = int((values > least).sum())
        kept = max(1, min(rank, max_rank))
        cut = 0.0
        if rank > max_rank:
            ranks[name], cut = rank, float(values[kept:].square().sum())
        errors.squares[name] = cut, float(values.square().sum())
        share = values[:kept].sqrt()  # alike in size, which half precision likes best
        factors[name] = UpdateFactors(
            (left[:, :kept] * share).float().contiguous(),
            (right[:, :kept] * share).float().contiguous(),
        )
    if ranks and not truncate:
        name = max(ranks, key=lambda each: ranks[each])
        raise EditError(
            f"adapter: the update of '{name}' has rank {ranks[name]}; expected at most {max_rank}. "
            f"Allow more (--max-rank {ranks[name]}); leave out what lies beyond (--truncate), "
            f"{100 * errors.of_each[name]:.2g} % of the update; or write the whole model (--as "
            "model)."
        )
    return LowRankUpdates(factors, errors)
