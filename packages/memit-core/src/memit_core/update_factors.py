"""An update in the form that costs little to keep."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from memit_core._shapes import shape_checked


@shape_checked
@dataclass(frozen=True, eq=False)
class UpdateFactors:
    """An update as the product of two thin matrices: Δ = left rightᵀ.

    Attributes:
        left: [d_value, rank].
        right: [d_key, rank].
    """

    left: Float[Tensor, "d_value rank"]
    right: Float[Tensor, "d_key rank"]

    @property
    def rank(self) -> int:
        """Columns of each factor: n_edits for the updates of this package."""
        return self.left.shape[1]

    @property
    def d_value(self) -> int:
        """Rows of the update."""
        return self.left.shape[0]

    @property
    def d_key(self) -> int:
        """Columns of the update."""
        return self.right.shape[0]

    def to(self, device: torch.device | str) -> "UpdateFactors":
        """Return the same factors on another device, or themselves if they are there."""
        return UpdateFactors(self.left.to(device), self.right.to(device))

    def dense(self) -> Tensor:
        """Multiply out: Δ, [d_value, d_key], in the dtype of the factors."""
        return self.left @ self.right.mT
