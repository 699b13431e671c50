"""The second moment of a layer's keys, E[k kᵀ] (MEMIT, Eqn 15).

It is uncentered, so it is no covariance, although papers and code often call it one.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from memit_core._linalg import (
    add_gram,
    copy_symmetric,
    find_float64_device,
    require_finite,
    require_second_moment,
)
from memit_core._shapes import shape_checked
from memit_core.errors import MemitCoreError, ShapeError

DTYPES: Final = (torch.float64, torch.float32)

# Keys are widened to the accumulator's dtype this many entries at a time (64 MiB in float64).
_ENTRIES_PER_CHUNK: Final = 2**23


class SecondMoment:
    """Streaming, mergeable estimate of E[k kᵀ] over tokens.

    It comes out the same, up to rounding, however the tokens are cut into batches and in whatever
    order parts are merged.

    Example:
        >>> import torch
        >>> from memit_core import SecondMoment
        >>> second_moment = SecondMoment(d_key=2)
        >>> second_moment.update(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        >>> second_moment.moment().tolist()
        [[1.0, 1.0], [1.0, 2.0]]
    """

    def __init__(
        self,
        d_key: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        """Start without a token.

        Args:
            d_key: Width of a key.
            dtype: What to accumulate in: float64, or float32 where memory or a device's speed
                forces it.
            device: Where to accumulate; the CPU if None, or if it lacks float64 and that is asked
                for.

        Raises:
            MemitCoreError: `d_key` is not positive, or `dtype` is neither float64 nor float32.
        """
        if d_key < 1:
            raise MemitCoreError(f"SecondMoment: `d_key` must be at least 1, got {d_key}.")
        if dtype not in DTYPES:
            raise MemitCoreError(
                f"SecondMoment: `dtype` is too narrow for a sum, got {dtype}; expected "
                "torch.float64 or torch.float32. Keys themselves may have any float dtype."
            )
        place = torch.device("cpu" if device is None else device)
        if dtype == torch.float64:
            place = find_float64_device(place)
        # The mean, not the sum: a moment that is loaded and saved again keeps its bits. Only the
        # upper triangle is kept up to date.
        self._mean = torch.zeros(d_key, d_key, dtype=dtype, device=place)
        self._n_tokens: int | None = 0

    @classmethod
    @shape_checked
    def from_moment(
        cls, moment: Float[Tensor, "d_key d_key"], *, n_tokens: int | None
    ) -> "SecondMoment":
        """Wrap a second moment that was computed elsewhere.

        Args:
            moment: E[k kᵀ]; kept as a copy, in float32 if it is float32 and else in float64.
            n_tokens: Tokens that it is the mean over; None if unknown, and then it can be read but
                neither updated nor merged.

        Raises:
            ShapeError: Not square, or not floating-point.
            IllPosedError: Not finite, or not symmetric.
            MemitCoreError: `n_tokens` is not positive.
        """
        if n_tokens is not None and n_tokens < 1:
            raise MemitCoreError(
                f"SecondMoment.from_moment: `n_tokens` must be at least 1, got {n_tokens}. "
                "Pass None if it is unknown."
            )
        device = find_float64_device(moment.device)
        checked = copy_symmetric("SecondMoment.from_moment", "moment", moment.detach(), device)
        dtype = torch.float32 if moment.dtype == torch.float32 else torch.float64
        wrapped = cls.__new__(cls)
        wrapped._mean = checked.to(dtype)
        wrapped._n_tokens = n_tokens
        return wrapped

    @property
    def d_key(self) -> int:
        """Width of a key."""
        return self._mean.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """What is accumulated in, and the dtype of `moment()`."""
        return self._mean.dtype

    @property
    def device(self) -> torch.device:
        """Where is accumulated, and the device of `moment()`."""
        return self._mean.device

    @property
    def n_tokens(self) -> int | None:
        """Tokens seen so far; None if the moment came from a file that does not say."""
        return self._n_tokens

    @shape_checked
    def update(self, keys: Float[Tensor, "n_tokens d_key"]) -> None:
        """Take in more tokens.

        Args:
            keys: One key per row, of any float dtype and on any device; padding already removed.

        Raises:
            ShapeError: Not two-dimensional, not floating-point, or not as wide as the others.
            IllPosedError: A key is not finite; nothing of this batch is taken in.
            MemitCoreError: The number of tokens seen so far is unknown.
        """
        n_before = self._require_count("SecondMoment.update")
        self._require_d_key("SecondMoment.update", "keys", keys.shape[1])
        if len(keys) == 0:
            return
        with torch.no_grad():
            require_finite("SecondMoment.update", "keys", keys)
            n_after = n_before + len(keys)
            share_before = n_before / n_after
            for chunk in torch.split(keys, max(1, _ENTRIES_PER_CHUNK // self.d_key)):
                wide = chunk.to(self.device).to(self.dtype)
                add_gram(self._mean, wide, beta=share_before, alpha=1 / n_after)
                share_before = 1.0
        self._n_tokens = n_after

    def merge(self, other: "SecondMoment") -> None:
        """Take in all tokens that another second moment has seen.

        Args:
            other: Left as it is; may live elsewhere and in another dtype.

        Raises:
            ShapeError: The keys differ in width.
            MemitCoreError: The number of tokens that either has seen is unknown.
        """
        n_self = self._require_count("SecondMoment.merge")
        n_other = other._require_count("SecondMoment.merge")
        self._require_d_key("SecondMoment.merge", "other", other.d_key)
        if n_other == 0:
            return
        n_both = n_self + n_other
        with torch.no_grad():
            theirs = other._mean.to(device=self.device, dtype=self.dtype)
            # `lerp_` also gets it right when both are the same object.
            self._mean.lerp_(theirs, n_other / n_both)
        self._n_tokens = n_both

    def moment(self) -> Tensor:
        """Return E[k kᵀ] as a new tensor, [d_key, d_key], exactly symmetric.

        Raises:
            MemitCoreError: No token has been seen.
        """
        if self._n_tokens == 0:
            raise MemitCoreError(
                "SecondMoment.moment: a mean needs tokens, got n_tokens=0. Call `update` first."
            )
        # Copying one triangle rounds nothing, so what was symmetric keeps its bits.
        upper = self._mean.triu()
        return upper.add_(self._mean.triu(1).mT)

    def _require_count(self, operation: str) -> int:
        if self._n_tokens is None:
            raise MemitCoreError(
                f"{operation}: a mean over an unknown number of tokens cannot be combined with "
                "others, got n_tokens=None. Use it as it is, or collect it anew."
            )
        return self._n_tokens

    def _require_d_key(self, operation: str, name: str, d_key: int) -> None:
        if d_key != self.d_key:
            raise ShapeError(
                f"{operation}: `{name}` does not fit, got d_key={d_key}; expected "
                f"d_key={self.d_key}. Keep one second moment per layer."
            )


@shape_checked
def check_second_moment(second_moment: Float[Tensor, "d_key d_key"]) -> None:
    """Refuse what cannot be a second moment, as far as can be seen without factorizing it.

    Args:
        second_moment: Of any float dtype; it may be mapped from a file, and is not copied.

    Raises:
        ShapeError: Not square, or not floating-point.
        IllPosedError: Not finite, no positive diagonal entry or a negative one, asymmetric beyond
            float32 rounding, or an entry so large that an eigenvalue is negative. The message says
            where.
    """
    require_second_moment("check_second_moment", "second_moment", second_moment)
