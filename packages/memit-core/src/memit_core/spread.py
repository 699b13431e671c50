"""How much of what is missing one layer takes on (MEMIT, Eqn 20)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from memit_core._linalg import find_float64_device, hand_back, require_finite
from memit_core._shapes import shape_checked
from memit_core.errors import MemitCoreError

Spreading = Literal["even", "root", "whole"]


@shape_checked
def spread_residuals(
    target_hidden: Float[Tensor, "n_edits d_value"],
    current_hidden: Float[Tensor, "n_edits d_value"],
    *,
    n_layers_left: int,
    spreading: Spreading = "even",
) -> Float[Tensor, "n_edits d_value"]:
    """Divide what separates current from target hidden states over the layers left.

    Measure `current_hidden` afresh before each layer: what one layer falls short of, the rest make
    up. The last layer (one left) takes everything that is still missing.

    Args:
        target_hidden: z, the hidden states that are wanted at the last critical layer.
        current_hidden: h, the hidden states there now, with the layers before already updated.
        n_layers_left: Critical layers from this one to the last, both counted.
        spreading: ``even`` divides by the layers left (MEMIT), ``root`` by their square root
            (PMET), and ``whole`` leaves all of it to each layer (BLUE).

    Returns:
        R = (z - h) / n_layers_left if even, in float64 (float32 on devices without float64), on
        the device of `target_hidden`. The difference is formed in the inputs' precision, in float32
        at least, as the reference implementation does.

    Raises:
        ShapeError: Shapes disagree, or a tensor is not floating-point.
        IllPosedError: A hidden state is not finite.
        MemitCoreError: `n_layers_left` is less than one.
    """
    if n_layers_left < 1:
        raise MemitCoreError(
            f"spread_residuals: `n_layers_left` must be at least 1, got {n_layers_left}. "
            "Count the layer being updated, too."
        )
    device = target_hidden.device
    dtype = torch.promote_types(target_hidden.dtype, current_hidden.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    with torch.no_grad():
        wide = [
            hidden.to(device=find_float64_device(device), dtype=dtype)
            for hidden in (target_hidden, current_hidden)
        ]
        require_finite("spread_residuals", "target_hidden", wide[0])
        require_finite("spread_residuals", "current_hidden", wide[1])
        divisor = {"even": n_layers_left, "root": n_layers_left**0.5, "whole": 1}[spreading]
        return hand_back((wide[0] - wide[1]).to(torch.float64) / divisor, device)
