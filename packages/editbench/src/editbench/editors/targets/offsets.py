"""The offsets δ that are optimized: Adam's steps, and the bounds that they keep to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from editbench.editors.targets.settings import TargetSettings

_ADAM_BETAS = (0.9, 0.999)
_ADAM_EPSILON = 1e-8


class Offsets:
    """One offset an edit, each with ‖δ‖ ≤ `clamp_factor`·‖h‖.

    Args:
        initial: h, what the offsets are added to, float32 `[n_edits, d_model]`.
        settings: Learning rate and bound.

    Attributes:
        values: The offsets, `[n_edits, d_model]`; zero at first.
        norms: ‖h‖, `[n_edits]`.
    """

    def __init__(self, initial: Tensor, settings: TargetSettings) -> None:
        self._settings = settings
        self.initial = initial
        self.norms = initial.norm(dim=1)
        self.values = torch.zeros_like(initial)
        self._mean, self._square = torch.zeros_like(initial), torch.zeros_like(initial)
        self._n_steps = 0

    def start_from(self, values: Tensor) -> None:
        """Begin with other offsets than zero, as far as the bound allows."""
        self.values = self._within_bounds(values.to(self.values))

    def step(self, losses: Tensor) -> None:
        """Take one of Adam's steps down each edit's own loss, `[n_edits]`, back into the bound.

        Args:
            losses: Made from `values`, which asked for a gradient.
        """
        (gradient,) = torch.autograd.grad(losses.sum(), self.values)
        self._n_steps += 1
        offsets = self.values.detach()
        self._mean.lerp_(gradient, 1 - _ADAM_BETAS[0])
        self._square.lerp_(gradient.square(), 1 - _ADAM_BETAS[1])
        scale = (self._square / (1 - _ADAM_BETAS[1] ** self._n_steps)).sqrt() + _ADAM_EPSILON
        rates = self._learning_rates()[:, None] / (1 - _ADAM_BETAS[0] ** self._n_steps)
        offsets -= rates * self._mean / scale
        self.values = self._within_bounds(offsets)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the edits only."""
        self.initial, self.norms, self.values = (
            each[rows] for each in (self.initial, self.norms, self.values)
        )
        self._mean, self._square = self._mean[rows], self._square[rows]

    def _learning_rates(self) -> Tensor:
        rate = self._settings.learning_rate
        if self._settings.learning_rate_unit == "relative":
            return rate * self.norms / self.initial.shape[1] ** 0.5
        return torch.full_like(self.norms, rate)

    def _within_bounds(self, offsets: Tensor) -> Tensor:
        bounds = self._settings.clamp_factor * self.norms
        return offsets * (bounds / offsets.norm(dim=1)).clamp(max=1)[:, None]
