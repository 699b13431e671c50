"""Seconds, memory and utilization of a device, and a record of them."""

import argparse
import functools
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch


class StageClock:
    """Times functions of other modules while they are called, the device's work included.

    Attributes:
        seconds: By label, summed over calls; functions within a function do not count twice.
        peak_bytes: By label, the most that was allocated on the device; empty on a CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}
        self._device = device
        self._running: list[str] = []

    @contextmanager
    def watching(self, places: Mapping[str, list[tuple[Any, str]]]) -> Iterator[None]:
        """Time calls within a ``with`` body.

        Args:
            places: By label the owners and names of functions or methods.
        """
        with ExitStack() as restoring:
            for label, functions in places.items():
                for owner, name in functions:
                    original = getattr(owner, name)
                    restoring.callback(setattr, owner, name, original)
                    setattr(owner, name, self._timed(label, original))
            yield

    @contextmanager
    def time(self, label: str) -> Iterator[None]:
        """Time a ``with`` body."""
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(self._device)
            if not self._running:
                torch.cuda.reset_peak_memory_stats(self._device)
        self._running.append(label)
        began = time.perf_counter()
        try:
            yield
        finally:
            if on_gpu:
                torch.cuda.synchronize(self._device)
                peak = torch.cuda.max_memory_allocated(self._device)
                self.peak_bytes[label] = max(self.peak_bytes.get(label, 0), peak)
            self._running.pop()
            spent = time.perf_counter() - began
            self.seconds[label] = self.seconds.get(label, 0.0) + spent
            if self._running:
                outer = self._running[-1]
                self.seconds[outer] = self.seconds.get(outer, 0.0) - spent

    def _timed(self, label: str, function: Any) -> Any:
        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.time(label):
                return function(*arguments, **options)

        return timed


def measure_peak(dtype: torch.dtype, device: torch.device, *, width: int | None = None) -> float:
    """Operations a second of a square matrix product: what the device can do with a dtype.

    Args:
        dtype: The dtype.
        device: The device.
        width: Of the matrices; by default 8,192 on a GPU and 512 on a CPU.
    """
    width = width or (8192 if device.type == "cuda" else 512)
    one, other = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        torch.cuda.synchronize(device) if device.type == "cuda" else None
        began = time.perf_counter()
        for _ in range(4):
            one @ other
        torch.cuda.synchronize(device) if device.type == "cuda" else None
        best = max(best, 4 * 2 * width**3 / (time.perf_counter() - began))
    return best


def record(
    args: argparse.Namespace,
    device: torch.device,
    settings: Mapping[str, Any],
    rows: list[dict[str, Any]],
) -> None:
    """Print the rows, and write them with the command and the machine if ``--out`` was given."""
    for row in rows:
        print(", ".join(f"{name} {_show(value)}" for name, value in row.items()), flush=True)
    if args.out is None:
        return
    on_gpu = device.type == "cuda"
    script = Path(sys.argv[0])
    content = {
        "benchmark": script.stem,
        "command": shlex.join(["python", f"benchmarks/gpu/{script.name}", *sys.argv[1:]]),
        "machine": {
            "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        },
        "settings": dict(settings),
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content, indent=2) + "\n")


def _show(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
