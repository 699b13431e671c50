"""Where float64 arithmetic is done, and how results get back.

Everything is solved in float64, whatever the inputs are stored in. Devices that lack float64 lend
their inputs to the CPU and get a float32 result back.
"""

from typing import Final

import torch
from torch import Tensor

DEVICE_TYPES_WITHOUT_FLOAT64: Final = frozenset({"mps"})


def find_float64_device(device: torch.device) -> torch.device:
    """Return `device` itself, or the CPU if `device` cannot compute in float64."""
    if device.type in DEVICE_TYPES_WITHOUT_FLOAT64:
        return torch.device("cpu")
    return device


def hand_back(result: Tensor, device: torch.device) -> Tensor:
    """Move a float64 result to the device its inputs came from, in float32 where it must be."""
    if device.type in DEVICE_TYPES_WITHOUT_FLOAT64:
        return result.to(device=device, dtype=torch.float32)
    return result.to(device)
