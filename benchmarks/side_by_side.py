"""What all benchmarks share: sides that run in turns in one process, and a record of the outcome.

Absolute times wander on shared machines. The sides of a comparison therefore take turns, `repeats`
times each, and the ratio of their medians is what counts. What a command does without options is
what is recorded; `make benchmarks` gives `--out` alone.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with what every benchmark takes: ``--repeats``, ``--threads``, ``--out``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="where to write the record, a JSON file")
    return parser


def add_most_repeated(parser: argparse.ArgumentParser, default: int, what: str) -> None:
    """Add ``--most-repeated``: beyond it a run takes minutes, and is made once."""
    parser.add_argument(
        "--most-repeated", type=int, default=default, help=f"with more {what}, one turn only"
    )


def choose_repeats(args: argparse.Namespace, size: int) -> int:
    """Turns of the sides for work of some size."""
    return args.repeats if size <= args.most_repeated else 1


def time_in_turns(sides: Sequence[Callable[[], Any]], repeats: int) -> list[tuple[float, Any]]:
    """Run the sides one after the other, `repeats` times.

    Returns:
        For each side, the median of its seconds, and what it returned last.
    """
    seconds: list[list[float]] = [[] for _ in sides]
    returned: list[Any] = [None for _ in sides]
    for _ in range(repeats):
        for index, run in enumerate(sides):
            began = time.perf_counter()
            returned[index] = run()
            seconds[index].append(time.perf_counter() - began)
    return [(statistics.median(each), last) for each, last in zip(seconds, returned, strict=True)]


def record(
    args: argparse.Namespace, settings: Mapping[str, Any], rows: list[dict[str, Any]]
) -> None:
    """Print the rows, and write them with the command and the machine if ``--out`` was given.

    Args:
        args: The parsed command line.
        settings: What the rows have in common: model, sizes, dtype.
        rows: One for each comparison: ``what`` is compared, the seconds of the ``slow`` and the
            ``fast`` side, their ``ratio``, and what else is worth knowing, such as ``difference``,
            or ``repeats`` where the row has other than ``--repeats``.
    """
    for row in rows:
        cells = (
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in row.items()
        )
        print(", ".join(cells))
    device = str(getattr(args, "device", "cpu"))
    on_gpu = device.startswith("cuda")
    content = {
        "benchmark": Path(sys.argv[0]).stem,
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": {
            **({"device": torch.cuda.get_device_name(device)} if on_gpu else {}),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": args.threads,
            "torch": torch.__version__,
        },
        "repeats": args.repeats,
        "settings": dict(settings),
        "rows": rows,
    }
    if args.out is not None:
        args.out.write_text(json.dumps(content, indent=2) + "\n")
