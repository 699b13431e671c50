"""A record that is on disk while its program runs, so that a time limit loses nothing of it."""

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_SECONDS_BETWEEN = 5.0  # progress within a stage is written no more often than that


class GrowingRecord:
    """What a benchmark has measured so far, with its command and the machine.

    The file is always a whole record: each time it is written beside and put in place. ``complete``
    says whether the program came to its end, and ``running`` what it was at if it did not.

    Args:
        path: The file; None writes none.
        device: Where the benchmark runs.
    """

    def __init__(self, path: Path | None, device: torch.device) -> None:
        self._path = path
        self._last_progress = self._stage_began = time.monotonic()
        on_gpu = device.type == "cuda"
        script = Path(sys.argv[0])
        self._content: dict[str, Any] = {
            "benchmark": script.stem,
            "command": shlex.join(["python", f"benchmarks/gpu/{script.name}", *sys.argv[1:]]),
            "machine": {
                "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
                "cores": os.cpu_count(),
                "torch": torch.__version__,
            },
            "complete": False,
            "settings": {},
            "rows": [],
        }
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def settle(self, settings: Mapping[str, Any]) -> None:
        """Add what the rows have in common."""
        self._content["settings"] |= settings

    def show_progress(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage has come, now and then."""
        now = time.monotonic()
        if self._content.get("running", {}).get("stage") != stage:
            self._stage_began = now
        seconds = now - self._stage_began
        progress = {"stage": stage, "done": done, "total": total, "seconds": seconds}
        self._content["running"] = progress
        if now - self._last_progress >= _SECONDS_BETWEEN:
            self._last_progress = now
            self._write()

    def show(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put in place what has been measured up to now."""
        self._content["rows"] = list(rows)
        self._write()

    def finish(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put in place and print all that was measured."""
        self._content["complete"] = True
        self._content.pop("running", None)
        self.show(rows)
        for row in rows:
            print(", ".join(f"{name} {_shorten(value)}" for name, value in row.items()), flush=True)

    def _write(self) -> None:
        if self._path is None:
            return
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        beside.write_text(json.dumps(self._content, indent=2) + "\n")
        beside.replace(self._path)


def _shorten(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_shorten, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
