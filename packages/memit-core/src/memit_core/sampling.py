"""How far a second moment can be trusted that is a mean over so many tokens and no more.

An update made with a sampled second moment Ĉ keeps still what Ĉ calls ordinary. On all other text
it moves keys more than the best update would. For one edit the direction of the update is
u = Ĉ⁻¹k / kᵀĈ⁻¹k, and its excess uᵀCu · kᵀC⁻¹k - 1 says how much more. That is what a solver loses
to sampling, whatever λ and the residuals are.
"""

import math

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from memit_core._linalg import require_finite, to_float64
from memit_core._shapes import shape_checked
from memit_core.errors import IllPosedError
from memit_core.preservation import FactorizedSecondMoment, Preservation, unwhiten, whiten


@shape_checked
def estimate_excess(
    first: Float[Tensor, "d_key d_key"],
    second: Float[Tensor, "d_key d_key"],
    keys: Float[Tensor, "n_tokens d_key"],
) -> float:
    """Estimate how much more than need be updates move ordinary keys, from two halves of a sample.

    An update is made with either half and tried on the other: ρ is the mean of how much it moves
    the other half's keys, relative to its own half's. A mean over n independent keys of d
    dimensions gives ρ = 1/(1 - γ)² with γ = d/n; keys of real text depend on each other, so γ is
    taken from ρ instead, halved for the whole sample, and the excess is γ/(1 - γ).

    Args:
        first: E[k kᵀ] over one half of the tokens. Halves have to be cut between texts, since
            tokens of one text resemble each other.
        second: The same of the other half.
        keys: Some keys to write to, of tokens in neither half.

    Returns:
        The mean excess of updates that are made with both halves together: 0.1 means that they
        move ordinary text a tenth more than they would with endless text. Infinite if a half is
        singular: there are too few tokens to tell.

    Raises:
        ShapeError: Shapes disagree, or a tensor is not floating-point.
        IllPosedError: Something is not finite.
    """
    for name, tensor in (("first", first), ("second", second), ("keys", keys)):
        require_finite("estimate_excess", name, tensor)
    # What a half has never seen says nothing; neurons that never fire would make it singular.
    live = (first.diagonal() > 0) & (second.diagonal() > 0)
    if not bool(live.all()):
        place = live.nonzero()[:, 0]
        first, second = (moment[place[:, None], place] for moment in (first, second))
        keys = keys[:, place]
    with torch.no_grad():
        ratios = []
        for own, other in ((first, second), (second, first)):
            try:
                factorized = FactorizedSecondMoment(own)
            except IllPosedError:
                return math.inf
            rows, ordinary = to_float64(keys, factorized.device), Preservation(factorized)
            directions = unwhiten(ordinary, whiten(ordinary, rows))
            own_movement = einsum(rows, directions, "edit d, d edit -> edit")  # of u · kᵀĈ⁻¹k
            moved = einsum(directions, other.to(directions) @ directions, "d edit, d edit -> edit")
            ratios.append(moved / own_movement)
    gamma = (1 - float(torch.cat(ratios).mean()) ** -0.5) / 2
    return gamma / (1 - gamma)
