"""States of tokens by rows or in one line, whichever way a module lays them out."""

from einops import rearrange
from torch import Tensor


def by_row(states: Tensor, n_rows: int) -> Tensor:
    """States as `[n_rows, width, d]`, also of a module that flattens them, as OPT's MLP does."""
    if states.dim() == 3:
        return states
    return rearrange(states, "(row token) d -> row token d", row=n_rows)


def by_token(states: Tensor) -> Tensor:
    """States as `[n_rows · width, d]`, one token after the other."""
    return rearrange(states, "... d -> (...) d")
