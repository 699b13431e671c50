"""Sums of rᵀr over rows, at half the arithmetic: they are symmetric."""

from typing import Final

from torch import Tensor

# More strips waste less on the blocks of the diagonal; fewer multiply larger matrices.
_N_STRIPS: Final = 8
_MIN_STRIP: Final = 256


def add_gram(system: Tensor, rows: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> None:
    """Turn a symmetric matrix S into βS + αRᵀR, in the upper triangle alone.

    Args:
        system: S, [d, d]; below the diagonal, what is there has no meaning any more.
        rows: R, [n, d], of the same dtype.
        beta: β.
        alpha: α.
    """
    size = len(system)
    strip = max(_MIN_STRIP, -(-size // _N_STRIPS))
    for start in range(0, size, strip):
        block = system[start : start + strip, start:]
        block.addmm_(rows[:, start : start + strip].mT, rows[:, start:], beta=beta, alpha=alpha)
