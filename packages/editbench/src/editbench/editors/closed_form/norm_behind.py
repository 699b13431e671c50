"""A norm between a projection and the residual stream, as Gemma, OLMo 2 and others have one.

What the projection says, u, goes into the stream as f(u) = g ⊙ u / √(‖u‖²/d + ε). Whatever is added
to u is swallowed where ‖u‖ is large, and blown up where it is small; and for all u of a length f(u)
lies on one ellipsoid, so that not every residual can be reached. `NormBehind.invert` says what u
has to be for f(u) to come as near as can be to what it ought to be: all the way, where that lies on
the ellipsoid.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editbench.models.agreement import agree
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel
from memit_core import capture, intervene

_N_HALVINGS = 100  # of an interval of 64-bit numbers, until nothing is left of it


@dataclass(frozen=True)
class NormBehind:
    """The norm that a projection's output goes through on its way into the residual stream.

    Attributes:
        scale: g, float64 `[d_model]`.
        epsilon: ε, which is felt where a projection says little.
    """

    scale: Tensor
    epsilon: float = 0.0

    @classmethod
    def find(cls, model: EditableModel, layer: int, kind: ProjectionKind) -> "NormBehind | None":
        """Find the norm behind a projection, by trying on a few tokens; None where there is none.

        It is a module of the block that is given what the projection says, divides it by its root
        mean square, and is added to what the block puts out. Norms of any other kind are None, too.
        """
        projection = model.architecture.projection(layer, kind)
        path = model.architecture.block(layer)
        block = model.model.get_submodule(path)
        norms = [
            f"{path}.{name}"
            for name, part in block.named_modules()
            if "norm" in type(part).__name__.lower()
        ]
        inputs = model.batch([model.tokens.encode("Whether a norm stands behind it.")])
        with torch.no_grad(), model.unedited("finding norms"):
            with capture(
                model.model, inputs_of=norms, outputs_of=[*norms, projection], stop=True
            ) as seen:
                model.model(**inputs, use_cache=False)
            said = seen.outputs[projection]
            for norm in norms:
                if torch.equal(seen.inputs[norm], said):
                    put = seen.outputs[norm]
                    found = cls._of(model.model.get_submodule(norm), said)
                    is_added = _is_added(model, norm, layer, kind, inputs)
                    return found if is_added and agree(found(said), put, put.dtype) else None
        return None

    @classmethod
    def _of(cls, norm: nn.Module, said: Tensor) -> "NormBehind":
        """Read ε from the norm, and g off: it is what comes out of ones, but for ε."""
        stated = (getattr(norm, name, None) for name in ("variance_epsilon", "eps"))
        epsilon = next((each for each in stated if each is not None), torch.finfo(said.dtype).eps)
        of_ones = norm(torch.ones_like(said)).flatten(0, -2)[0].double()
        return cls(of_ones * (1 + epsilon) ** 0.5, epsilon)

    def __call__(self, said: Tensor) -> Tensor:
        """f(u), float64 `[..., d_model]`."""
        wide = said.double()
        mean_square = wide.square().mean(-1, keepdim=True)
        return self.scale.to(wide.device) * wide * (mean_square + self.epsilon).rsqrt()

    def pull_back(self, said: Tensor, residuals: Tensor) -> Tensor:
        """What to add to the projection's outputs u, for f(u) to change by `residuals`.

        Args:
            said: u, `[n, d_model]`.
            residuals: What is to be added to f(u), likewise.

        Returns:
            float64 `[n, d_model]`; ‖u‖, on which f hardly depends, stays as it is.
        """
        wide = said.double()
        return self.invert(self(said) + residuals, wide.norm(dim=1)) - wide

    def invert(self, wanted: Tensor, size: Tensor) -> Tensor:
        """Find u of a given length with f(u) nearest to `wanted`.

        Minimizing ‖g ⊙ s − v‖² over s = u / √(‖u‖²/d + ε), as long as ‖u‖ makes it, gives
        s = g v / (g² + μ), with the one μ > −min g² that makes it so long.

        Args:
            wanted: v, `[n, d_model]`.
            size: ‖u‖, `[n]`.

        Returns:
            u, float64 `[n, d_model]`.
        """
        scale, wanted = self.scale.to(wanted.device), wanted.double()
        square, size = scale.square(), size.double()
        length = size * (size.square() / wanted.shape[1] + self.epsilon).rsqrt()
        product = scale * wanted
        low = (-square.min()).expand(len(wanted))
        high = product.norm(dim=1) / length + square.max()  # there s is too short
        for _ in range(_N_HALVINGS):
            middle = (low + high) / 2
            is_long = (product / (square + middle[:, None])).norm(dim=1) > length
            low, high = torch.where(is_long, middle, low), torch.where(is_long, high, middle)
        direction = product / (square + high[:, None])
        return direction * (size / direction.norm(dim=1))[:, None]


def _is_added(
    model: EditableModel, norm: str, layer: int, kind: ProjectionKind, inputs: Mapping[str, Any]
) -> bool:
    """Whether what comes out of a norm is added to what its block puts out."""
    block = model.architecture.block(layer)
    silent = {}
    if kind == "attention":  # what the MLP makes of it is another matter
        silent = {model.architecture.projection(layer, "mlp"): torch.zeros_like}

    def put_out(times: float) -> Tensor:
        changes = {norm: lambda output: times * output, **silent}
        with (
            intervene(model.model, changes),
            capture(model.model, outputs_of=[block], stop=True) as seen,
        ):
            model.model(**inputs, use_cache=False)
        return seen.outputs[block]

    with capture(model.model, outputs_of=[norm], stop=True) as seen:
        model.model(**inputs, use_cache=False)
    usual, put = put_out(1), seen.outputs[norm]
    return agree(put_out(2), usual + put, put.dtype)
