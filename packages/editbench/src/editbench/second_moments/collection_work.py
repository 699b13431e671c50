"""How second moments are collected: when it is enough, from how much text at once, at what cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Self

import torch
from torch import Tensor

from editbench.costs.stage import Forward, StageCost
from editbench.models.architecture import ProjectionKind
from editbench.models.batches import Padded
from editbench.models.editable import EditableModel
from memit_core import SecondMoment, estimate_excess

STAGE = "second moments"
TokenCount = int | Literal["auto"]

MAX_LENGTH = 2_048  # tokens that a text is cut to, if nobody says
_TYPICAL_LENGTH = 512  # tokens of a text of a corpus
_LOOK_MATRICES = 6  # of d_key × d_key: two means, their sum, and what they are compared with
_WIDENED = 2**23  # numbers of keys that are in float64 at once

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


@dataclass(frozen=True)
class CollectionWork:
    """How second moments are collected: what running and estimating go by.

    Attributes:
        stop: When to end, if the collection itself finds that out.
        n_tokens: Tokens to collect from, at most.
        n_parts: Into how many parts texts are counted, each with matrices of its own.
        device: Where the matrices are.
        n_together: Tokens that run at once.
    """

    stop: SamplingStop | None
    n_tokens: int
    n_parts: int
    device: torch.device
    n_together: int

    @classmethod
    def of(cls, model: EditableModel, widths: Sequence[int], n_tokens: TokenCount) -> Self:
        """Decide for keys of so many dimensions, layer by layer."""
        stop = SamplingStop(max(widths)) if n_tokens == "auto" else None
        n_parts = 1 if stop is None else 2
        n_bytes = n_parts * len(widths) * max(widths) ** 2 * torch.float64.itemsize
        n_captured = (len(widths) + 1) * max(widths)  # of one layer there are two for a moment
        device, n_together = model.memory.place_beside_text(n_bytes, n_captured=n_captured)
        n_most = stop.end if stop is not None else int(n_tokens)
        return cls(stop, n_most, n_parts, device, n_together)


def estimate_collection(
    model: EditableModel, layers: Sequence[int], n_tokens: TokenCount, module: ProjectionKind
) -> StageCost:
    """What collecting costs, if the corpus has enough text.

    Args:
        model: The model, with weights or without.
        layers: The layers whose keys are collected.
        n_tokens: When to stop; ``auto`` is taken to stop where it usually does.
        module: Whose output projection's inputs are the keys.
    """
    size, d_key = model.size, model.d_key(layers[0], module)
    work = CollectionWork.of(model, [d_key] * len(layers), n_tokens)
    n_usual = work.n_tokens if work.stop is None else work.stop.usual_end
    length = min(limit_length(model, None), _TYPICAL_LENGTH)
    n_together = min(work.n_together, n_usual)
    n_passes = -(-n_usual // n_together)
    batch = Padded(max(1, n_together // length), length, n_together)
    forward = Forward(batch, max(layers) + 1, n_times=n_passes).cost(size)
    is_on_device = work.device == model.device
    matrices = work.n_parts * len(layers) * d_key**2 * torch.float64.itemsize
    keys = n_together * (len(layers) + 1) * d_key * size.itemsize
    widened = min(n_together * d_key, _WIDENED) * torch.float64.itemsize
    looked_at = 0 if work.stop is None else _LOOK_MATRICES * d_key**2 * torch.float64.itemsize
    while_running = forward.n_peak_bytes + keys + widened
    written = 2 * matrices if work.device.type == "cpu" else 0  # means, and their bytes
    n_peak = max(while_running, looked_at, written if is_on_device else 0)
    n_peak += matrices if is_on_device else 0
    place = "" if is_on_device else ", matrices in main memory"
    until = "" if work.stop is None else f", until sampling costs little: {work.n_tokens:,} at most"
    return replace(
        forward,
        name=STAGE,
        n_tokens=n_usual,
        n_double_flops=len(layers) * n_usual * d_key**2,  # one triangle
        n_peak_bytes=n_peak,
        chunks=f"{n_passes:,} batches of at most {n_together:,} tokens{place}{until}",
    )


def limit_length(model: EditableModel, max_length: int | None) -> int:
    """Tokens that a text is cut to."""
    return min(max_length or MAX_LENGTH, model.max_positions or MAX_LENGTH)
