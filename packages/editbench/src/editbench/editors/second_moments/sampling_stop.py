"""When to stop collecting second moments: as soon as sampling costs an edit little."""

from collections.abc import Mapping, Sequence
from typing import Final

from torch import Tensor

from memit_core import SecondMoment, estimate_excess

TOLERATED_EXCESS: Final = 0.1
"""It is enough when updates move ordinary text no more than this much more than need be."""

# In tokens for each dimension of a key: when to look first, and when to end in any case.
_FIRST_LOOK: Final = 4
_USUAL_END: Final = 24
_END: Final = 400


class SamplingStop:
    """Looks, now and then, at what two halves of a collection say about each other.

    Args:
        d_key: Width of the widest key.

    Attributes:
        next_look: Tokens after which to look again.
        usual_end: Tokens after which it is enough for most models and corpora.
        end: Tokens after which to end in any case.
        excess: What the last look found, see `memit_core.estimate_excess`; infinite before.
    """

    def __init__(self, d_key: int) -> None:
        self.next_look = _FIRST_LOOK * d_key
        self.usual_end = _USUAL_END * d_key
        self.end = _END * d_key
        self.excess = float("inf")

    def count_ahead(self, n_tokens: int) -> int:
        """How many tokens to read next: up to the next look, or, when it is due, to look at."""
        return self.next_look - n_tokens if n_tokens < self.next_look else max(1, n_tokens // 4)

    def look(
        self,
        halves: Sequence[Mapping[int, SecondMoment]],
        keys: Mapping[int, Tensor],
        n_tokens: int,
    ) -> bool:
        """Whether it is enough for every layer.

        Args:
            halves: Two halves of what has been collected.
            keys: For each layer some keys that are in neither.
            n_tokens: Tokens in both halves.
        """
        first, second = halves
        self.excess = max(
            estimate_excess(first[layer].moment(), second[layer].moment(), keys[layer])
            for layer in keys
        )
        # The excess falls as tokens grow, so this is about where it will be enough. What is looked
        # at is counted afterwards, so it takes at least as much more as `count_ahead` has said.
        growth = min(2.0, max(1.25, 1.05 * self.excess / TOLERATED_EXCESS))
        self.next_look = round(growth * n_tokens)
        return self.excess <= TOLERATED_EXCESS
