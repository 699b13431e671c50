"""The slot of finishes: what is done to an update before it is written.

Sources: RECT arXiv 2401.04700, PRUNE 2405.16821, SPHERE 2510.01172, REVIVE 2601.11042. Updates Δ
and weights W are `[d_value, d_key]`; results are float64, wherever the update is.
"""

import math

import torch
from torch import Tensor

from editbench.editors.closed_form.dials import Dials
from editbench.editors.closed_form.goals import Solved
from editbench.edits.files import Update
from editbench.edits.low_rank import decompose
from editbench.edits.weight_edit import make_dense
from memit_core import UpdateFactors


def finish_update(solved: Solved, dials: Dials) -> Update:
    """Do to the update of a layer what the dials say is done to each."""
    update, weight = solved.update, solved.weight
    match dials.finish:
        case "rect":
            return keep_largest_changes(update, weight, dials.keep_share)
        case "prune" if dials.error_feedback:
            return restrain_singular_values(update, find_largest_singular_value(weight))
        case "sphere":
            return turn_away(update, weight, dials.protected_share, dials.protection)
        case "revive":
            if not solved.kept:  # the weight is still the unedited one
                left, right = find_main_directions(weight, dials.protected_share)
                solved.kept.update(left=left, right=right)
            left, right = solved.kept["left"], solved.kept["right"]
            return spare_main_directions(update, left, right, dials.protection)
    return update


def finish_total(total: Update, weight: Tensor, dials: Dials) -> Update:
    """Do to the sum of all updates what the dials say is done to it when it is handed out."""
    if dials.finish == "prune" and not dials.error_feedback:
        return restrain_singular_values(total, find_largest_singular_value(weight))
    return total


def keep_largest_changes(update: Update, weight: Tensor, keep_share: float) -> Tensor:
    """RECT: of Δ those entries that change their own weight most, and zero elsewhere.

    Args:
        update: Δ.
        weight: W, which the ratios |Δ / (W + 1e-8)| are of.
        keep_share: The share of entries that stay, above 0; those that tie with the last one stay.
    """
    dense = make_dense(update)
    ratios = (dense / (weight.to(dense.device) + 1e-8).double()).abs()
    n_dropped = int((1 - keep_share) * ratios.numel())
    if n_dropped == 0:
        return dense
    # The reference keeps what ties with the last one that is dropped by count.
    threshold = ratios.flatten().kthvalue(n_dropped).values
    return dense * (ratios >= threshold)


def restrain_singular_values(update: Update, bound: float) -> Update:
    """PRUNE: singular values σ of Δ from σ_max on become ln σ - ln σ_max + σ_max.

    Args:
        update: Δ; factors stay factors.
        bound: σ_max, the weight's largest singular value, see `find_largest_singular_value`.
    """
    left, values, right = decompose(update)
    restrained = torch.where(values >= bound, values.log() - math.log(bound) + bound, values)
    factors = UpdateFactors(left * restrained, right.contiguous())
    return factors if isinstance(update, UpdateFactors) else factors.dense()


def find_largest_singular_value(weight: Tensor) -> float:
    """σ_max of W, by the eigenvalues of the smaller one of WWᵀ and WᵀW."""
    return float(_smaller_gram(weight.double())[0][-1].clamp(min=0).sqrt())


def turn_away(update: Update, weight: Tensor, protected_share: float, protection: float) -> Tensor:
    """SPHERE: Δ (I - γ UUᵀ), U the main directions in which W's rows point, whatever their length.

    Args:
        update: Δ.
        weight: W.
        protected_share: η; U has one direction more than have at most that share of all energy.
        protection: γ, how much of Δ along U is taken away; 1 is all of it.
    """
    dense = make_dense(update)
    rows = torch.nn.functional.normalize(weight.to(dense.device).double(), dim=1)
    _, main = find_main_directions(rows, protected_share)
    return dense - protection * (dense @ main) @ main.mT


def spare_main_directions(
    update: Update, left: Tensor, right: Tensor, protection: float = 1.0
) -> Tensor:
    """REVIVE: (I - γ UUᵀ) Δ (I - γ VVᵀ), U and V the main singular directions of a weight.

    Args:
        update: Δ.
        left: U `[d_value, k]`.
        right: V `[d_key, k]`.
        protection: γ, how much of Δ along them is taken away; 1 is all of it.
    """
    dense = make_dense(update)
    left, right = left.to(dense), right.to(dense)
    dense = dense - protection * left @ (left.mT @ dense)
    return dense - protection * (dense @ right) @ right.mT


def find_main_directions(weight: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Find the singular directions of W that hold more than a share of all energy Σσ².

    Args:
        weight: W.
        share: From 0 to 1.

    Returns:
        The fewest that do, left `[d_value, k]` and right `[d_key, k]`, in float64.
    """
    wide = weight.double()
    energies, vectors = _smaller_gram(wide)
    energies, vectors = energies.clamp(min=0).flip(0), vectors.flip(1)
    n_main = int((energies.cumsum(0) <= share * energies.sum()).sum()) + 1
    vectors = vectors[:, :n_main]
    if wide.shape[0] > wide.shape[1]:
        return torch.nn.functional.normalize(wide @ vectors, dim=0), vectors
    return vectors, torch.nn.functional.normalize(wide.mT @ vectors, dim=0)


def _smaller_gram(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of the smaller one of WWᵀ and WᵀW."""
    is_tall = weight.shape[0] > weight.shape[1]
    eigenvalues, vectors = torch.linalg.eigh(weight.mT @ weight if is_tall else weight @ weight.mT)
    return eigenvalues, vectors
