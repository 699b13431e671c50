"""How fast this machine is, measured in a moment on the shapes of a model."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch

from editbench.costs.stage import StageCost
from editbench.models.decoder_size import DecoderSize

# Work on a model is slower than one large product of matrices: norms, activations, many small
# steps. So these are shares of that product's speed, and what a call of a block takes at least.
# Fitted to MEMIT, ROME, FT-W and answers on one core, with the embedded model and a 12-layer GPT-J;
# good to a factor of two. An H200 did z of GPT-J at 0.37 of it, and at 0.57 while kernels ran.
EFFICIENCY = 0.4
DOUBLE_EFFICIENCY = 0.7
BLOCK_SECONDS = {"cpu": 0.9e-3, "cuda": 0.35e-3}

_SECONDS = 0.1
_MOST_TOKENS = 1_024
_DOUBLE_WIDTH = 1_024
_READ_BYTES = 2**27  # more than caches hold


@dataclass(frozen=True, slots=True)
class Machine:
    """A device's speed.

    Attributes:
        flops: Operations a second in the model's type, in a large product of matrices.
        double_flops: The same in float64.
        read_bytes: Bytes a second that are read from memory.
        block_seconds: What calling a decoder block takes at least.
    """

    flops: float
    double_flops: float
    read_bytes: float
    block_seconds: float

    @classmethod
    def measure(cls, size: DecoderSize, device: torch.device, dtype: torch.dtype) -> Self | None:
        """Measure a device with products as wide as a model's MLP; about 0.3 seconds.

        Returns:
            The speed; None where the device is not there.
        """
        try:
            weight = torch.ones(size.d_mlp, size.d_model, device=device, dtype=dtype)
        except (RuntimeError, AssertionError):
            return None

        def multiply(n: int) -> Callable[[], object]:
            states = torch.ones(n, size.d_model, device=device, dtype=dtype)
            return lambda: states @ weight.T

        few = _time(multiply(64), device) / 64
        n_tokens = max(64, min(_MOST_TOKENS, int(_SECONDS / few)))
        token_seconds = _time(multiply(n_tokens), device) / n_tokens
        large = torch.ones(_READ_BYTES, device=device, dtype=torch.int8).view(torch.float32)
        read_seconds = _time(large.sum, device)
        has_doubles = device.type != "mps"
        square = torch.ones(
            _DOUBLE_WIDTH, _DOUBLE_WIDTH, device=device if has_doubles else "cpu"
        ).double()
        double_seconds = _time(lambda: square @ square, square.device)
        return cls(
            flops=2 * weight.numel() / token_seconds,
            double_flops=2 * _DOUBLE_WIDTH**3 / double_seconds,
            read_bytes=_READ_BYTES / read_seconds,
            block_seconds=BLOCK_SECONDS.get(device.type, BLOCK_SECONDS["cuda"]),
        )

    def seconds(self, stage: StageCost) -> float:
        """About how long a stage takes."""
        return (
            stage.n_flops / (EFFICIENCY * self.flops)
            + stage.n_double_flops / (DOUBLE_EFFICIENCY * self.double_flops)
            + stage.n_read_bytes / self.read_bytes
            + stage.n_block_calls * self.block_seconds
        )


SLOW = Machine(flops=2e10, double_flops=1e10, read_bytes=5e9, block_seconds=1e-3)
"""One core of an old machine: what is quick there is quick anywhere."""


def _time(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the quickest of a few runs; the first one does not count."""

    def run() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    run()
    until = time.perf_counter() + _SECONDS / 2
    best = run()
    while time.perf_counter() < until:
        best = min(best, run())
    return best
