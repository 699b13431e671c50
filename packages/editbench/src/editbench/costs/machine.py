"""How fast this machine is: a block of a model's sizes is run here for a moment, once.

Work on a model is mostly calls of its blocks, and a call takes about a + b·n for n tokens: a for
reading the weights and for calling anything at all, b for operations, and for all that norms and
activations move. Both are measured on a block that is made for it. What is measured is kept in the
cache folder, under a name that says of what it is: machine, device, type, threads and sizes.
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Self

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from editbench.costs.stage import StageCost
from editbench.files.whole_files import write_whole
from editbench.models.decoder_size import DecoderSize
from editbench.models.device_memory import is_present

_VERSION = 1  # raised whenever something else is measured
_SECONDS = 0.1  # for each thing that is measured
_WIDTH = 16  # tokens of a row
_MOST_TOKENS = 512
_DOUBLE_WIDTH = 1_024
_READ_BYTES = 2**27  # more than caches hold
# What the block that is measured lacks: masks, caches, hooks. Fitted to MEMIT, ROME, FT-W and
# answers on one core, with the embedded model and with SmolLM2-135M.
_CALL_SECONDS = {"cpu": 0.25e-3, "cuda": 0.2e-3}
_EFFICIENCY = 0.65  # of that, against blocks that run one after the other, and nothing else
_DOUBLE_EFFICIENCY = 0.7  # of solving, against one large product


@dataclass(frozen=True, slots=True)
class Machine:
    """A device's speed.

    Attributes:
        flops: Operations a second in the model's type, norms and activations on the way.
        double_flops: Those of solving, in float64.
        read_bytes: Bytes a second that are read besides the weights of blocks.
        block_seconds: What calling a decoder block takes, the weights read.
    """

    flops: float
    double_flops: float
    read_bytes: float
    block_seconds: float

    @classmethod
    def find(
        cls,
        size: DecoderSize,
        device: torch.device,
        dtype: torch.dtype,
        cache: Path | None = None,
    ) -> Self | None:
        """What the cache has about a device, or else `measure`, which is kept there.

        Args:
            size: The model's sizes.
            device: The device.
            dtype: The model's type.
            cache: The cache folder; None keeps nothing.
        """
        if cache is None or not is_present(device):
            return cls.measure(size, device, dtype)
        path = cache / "machines" / f"{_name(size, device, dtype)}.json"
        with suppress(OSError, ValueError, TypeError):
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        found = cls.measure(size, device, dtype)
        if found is not None:
            with suppress(OSError):  # it is measured again the next time
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, json.dumps(asdict(found)))
        return found

    @classmethod
    def measure(cls, size: DecoderSize, device: torch.device, dtype: torch.dtype) -> Self | None:
        """Measure a device with a block of a model's sizes; about a second.

        Returns:
            The speed; None where the device is not there.
        """
        if not is_present(device):
            return None
        with torch.random.fork_rng(devices=[]):
            block = _Block(size).to(device=device, dtype=dtype)

        def run(n_rows: int, width: int) -> Callable[[], object]:
            states = torch.ones(n_rows, width, size.d_model, device=device, dtype=dtype)
            return lambda: block(states)

        with torch.no_grad():
            one = _time(run(1, 1), device)
            n_flops, few = _count(size, 4 * _WIDTH), _time(run(4, _WIDTH), device)
            flops = n_flops / max(few - one, few / 2)
            n_rows = min(_MOST_TOKENS // _WIDTH, int(4 * _SECONDS / few))
            if n_rows > 4:
                many = _time(run(n_rows, _WIDTH), device)
                flops = _count(size, n_rows * _WIDTH) / max(many - one, many / 2)
        at = device if device.type != "mps" else torch.device("cpu")
        square = torch.ones(_DOUBLE_WIDTH, _DOUBLE_WIDTH, device=at, dtype=torch.float64)
        double = _time(lambda: square @ square, at)
        large = torch.ones(_READ_BYTES // 4, device=device, dtype=torch.float32)
        return cls(
            flops=_EFFICIENCY * flops,
            double_flops=_DOUBLE_EFFICIENCY * 2 * _DOUBLE_WIDTH**3 / double,
            read_bytes=_READ_BYTES / _time(large.sum, device),
            block_seconds=one + _CALL_SECONDS.get(device.type, _CALL_SECONDS["cuda"]),
        )

    def seconds(self, stage: StageCost) -> float:
        """About how long a stage takes."""
        return (
            stage.n_flops / self.flops
            + stage.n_double_flops / self.double_flops
            + stage.n_read_bytes / self.read_bytes
            + stage.n_block_calls * self.block_seconds
        )


SLOW = Machine(flops=1e10, double_flops=5e9, read_bytes=5e9, block_seconds=1e-3)
"""One core of an old machine: what is quick there is quick anywhere."""


class _Block(nn.Module):
    """A decoder block of a model's sizes, with random weights."""

    def __init__(self, size: DecoderSize) -> None:
        super().__init__()
        self._n_heads, self._is_eager = size.n_heads, size.keeps_scores
        self._composed = size.composed_norms
        self._widths = [size.d_attention, size.d_cache // 2, size.d_cache // 2]
        self.norms = nn.ModuleList([nn.LayerNorm(size.d_model) for _ in range(2)])
        self.inward = nn.Linear(size.d_model, sum(self._widths), bias=False)
        self.outward = nn.Linear(size.d_attention, size.d_model, bias=False)
        n_up = min(2, size.n_mlp_maps - 1)
        self.up = nn.ModuleList([nn.Linear(size.d_model, size.d_mlp) for _ in range(n_up)])
        self.down = nn.Linear(size.d_mlp, size.d_model)

    def forward(self, states: Tensor) -> Tensor:
        """States ``[n_rows, width, d_model]`` to states."""
        d_head = self._widths[0] // self._n_heads
        parts = self.inward(self._norm(0, states)).split(self._widths, dim=-1)
        split = "row token (head d) -> row head token d"
        query, key, value = (rearrange(part, split, d=d_head) for part in parts)
        n_groups = query.shape[1] // max(1, key.shape[1])
        shared = "row head token d -> row (head group) token d"
        key, value = (repeat(part, shared, group=n_groups) for part in (key, value))
        if self._is_eager:
            scores = query.float() @ key.float().transpose(2, 3) / d_head**0.5
            mask = torch.ones_like(scores, dtype=torch.bool).tril()
            mixed = scores.where(mask, -torch.inf).softmax(dim=-1).to(value) @ value
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        states = states + self.outward(rearrange(mixed, "row head token d -> row token (head d)"))
        inner = functional.silu(self.up[0](self._norm(1, states)))
        for up in list(self.up)[1:]:
            inner = inner * up(states)
        return states + self.down(inner)

    def _norm(self, index: int, states: Tensor) -> Tensor:
        if not self._composed:
            return self.norms[index](states)
        wide = states.float()
        scale = (wide.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()
        return self.norms[index].get_parameter("weight") * (wide * scale).to(states.dtype)


def _count(size: DecoderSize, n_tokens: int) -> float:
    """Operations of a block on all tokens but one."""
    return size.block_flops(n_tokens - 1, n_tokens * _WIDTH)


def _time(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the quickest of a few runs; the first one does not count.

    On a processor they are this thread's own, so that other programs do not count.
    """
    clock = time.thread_time if device.type == "cpu" else time.perf_counter

    def run() -> float:
        began = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - began

    run()
    until = time.perf_counter() + _SECONDS
    best = run()
    while time.perf_counter() < until:
        best = min(best, run())
    return best


def _name(size: DecoderSize, device: torch.device, dtype: torch.dtype) -> str:
    """What a measurement is of: machine, device, type, threads, and a hash of the sizes."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    sizes = (_VERSION, torch.__version__, astuple(size))
    words = [
        platform.node(),
        platform.machine(),
        kind,
        str(dtype).removeprefix("torch."),
        f"{torch.get_num_threads()}-threads",
        hashlib.sha256(repr(sizes).encode()).hexdigest()[:16],
    ]
    return "-".join("".join(c if c.isalnum() else "_" for c in word) for word in words)
