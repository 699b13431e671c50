"""Adam on a model's own weights, with a copy in float32 and a bound on how far they may go."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Gradients = Sequence[Tensor | None]


class WeightTrainer:
    """Trains parameters in place, without touching the others.

    In half precision a single step would be lost to rounding, so what is trained is a copy in
    float32, from which the parameters are set after every step.

    Args:
        parameters: What is trained.
        learning_rate: Adam's.
        weight_decay: Plain L2 in Adam: it pulls weights towards zero, not to where they were.
        norm_constraint: After every step each weight is put back to within ± this of where it
            was at the start; None sets no bound.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float,
        norm_constraint: float | None,
    ) -> None:
        self._parameters = parameters
        self._masters = [parameter.detach().float().clone() for parameter in parameters]
        self._start = [master.clone() for master in self._masters] if norm_constraint else []
        self._norm_constraint = norm_constraint
        self._adam = torch.optim.Adam(self._masters, lr=learning_rate, weight_decay=weight_decay)

    @contextmanager
    def gradients_on(self) -> Iterator[None]:
        """Let the parameters ask for gradients within a ``with`` body."""
        asked = [parameter.requires_grad for parameter in self._parameters]
        try:
            for parameter in self._parameters:
                parameter.requires_grad_(True)
            with torch.enable_grad():
                yield
        finally:
            for parameter, did in zip(self._parameters, asked, strict=True):
                parameter.requires_grad_(did)

    def gradients(self, loss: Tensor) -> Gradients:
        """Gradients of `loss` by the parameters, float32; None for those it does not use."""
        found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        return [None if gradient is None else gradient.float() for gradient in found]

    def step(self, gradients: Gradients) -> None:
        """Take one step down `gradients`; parameters that have none stay put."""
        for master, gradient in zip(self._masters, gradients, strict=True):
            master.grad = gradient
        self._adam.step()
        with torch.no_grad():
            if self._norm_constraint is not None:
                for master, start in zip(self._masters, self._start, strict=True):
                    bound = self._norm_constraint
                    master.copy_(master.clamp(start - bound, start + bound))
            for parameter, master in zip(self._parameters, self._masters, strict=True):
                parameter.copy_(master)
