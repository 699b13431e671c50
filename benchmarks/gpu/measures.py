"""Seconds and memory of a program's stages on a device, and what the device can do."""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class _Frame:
    """A call that is being timed.

    Attributes:
        label: What it is called.
        elsewhere: Seconds of timed calls within it.
        peak: Most bytes so far that were allocated, calls within it left out.
    """

    label: str
    elsewhere: float = 0.0
    peak: int = 0


class StageClock:
    """Times functions of other modules while they are called, the device's work included.

    Args:
        device: The device that is waited for on both sides.
        on_call: Called after each call that was timed; its own time is nobody's.

    Attributes:
        calls: By label the seconds of each call, in the order in which they ended; calls within a
            call do not count twice.
        peak_bytes: By label, the most that was allocated on the device; empty on a CPU.
    """

    def __init__(self, device: torch.device, on_call: Callable[[], None] = lambda: None) -> None:
        self.calls: dict[str, list[float]] = {}
        self.peak_bytes: dict[str, int] = {}
        self._device = device
        self._on_call = on_call
        self._running: list[_Frame] = []

    @property
    def seconds(self) -> dict[str, float]:
        """By label, summed over calls."""
        return {label: sum(each) for label, each in self.calls.items()}

    def is_running(self, label: str) -> bool:
        """Whether a call of that name has begun and not ended."""
        return any(frame.label == label for frame in self._running)

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
        self._note_peak()
        frame = _Frame(label)
        self._running.append(frame)
        began = time.perf_counter()
        try:
            yield
        finally:
            self._note_peak()
            spent = time.perf_counter() - began
            self._running.pop()
            if self._device.type == "cuda":
                self.peak_bytes[label] = max(self.peak_bytes.get(label, 0), frame.peak)
            self.calls.setdefault(label, []).append(spent - frame.elsewhere)
            self._on_call()
            if self._running:
                self._running[-1].elsewhere += time.perf_counter() - began

    def _note_peak(self) -> None:
        """Wait for the device; what was allocated up to now is the innermost call's."""
        if self._device.type != "cuda":
            return
        torch.cuda.synchronize(self._device)
        if self._running:
            frame = self._running[-1]
            frame.peak = max(frame.peak, torch.cuda.max_memory_allocated(self._device))
        torch.cuda.reset_peak_memory_stats(self._device)

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
