"""Whether two ways of computing the same thing agree, as far as rounding lets one tell.

Shortcuts are compared once with the model's own forward. What rounding does is told by root mean
squares: the largest of many entries is off by more the more there are.
"""

import torch
from torch import Tensor

_UNITS = 128  # of rounding, which adds up over blocks
_MOST = 1 / 8  # in bfloat16 so many units would be all there is


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The root mean square of `found - expected`, relative to that of `expected`.

    Zero where both are all zeros, as with tokens whose embedding is.
    """
    wide = expected.float()
    off = (found.float() - wide).norm()
    return 0.0 if off == 0 else float(off / wide.norm())


def tolerated_error(dtype: torch.dtype) -> float:
    """The largest `relative_error` that is put down to rounding in `dtype`."""
    return min(_UNITS * torch.finfo(dtype).eps, _MOST)


def agree(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors differ by rounding in `dtype` alone; what is not finite never agrees."""
    return relative_error(found, expected) <= tolerated_error(dtype)
