"""Benchmark: how an edit grows with the number of facts: seconds and peak memory.

    python benchmarks/growth.py --out benchmarks/results/growth.json

MEMIT writes n facts into the embedded model with its default hyperparameters, for each n in a
process of its own, whose peak memory is measured. Second moments and context prefixes are made
beforehand. Exponents are slopes of log seconds, and of log memory beyond that of one fact, over
log n; the facts' own results (z, keys, updates) are part of that memory.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from side_by_side import make_parser, record

from editbench.atlas import default_world
from editbench.editors.base import Resources, Share
from editbench.editors.memit import Memit
from editbench.models.loading import load_model
from editbench.plugins.atlas import ATLAS, atlas_corpus
from editbench.requests import EditRequest

_FITTED_FROM = 100  # below that what every edit needs weighs more than the facts


def make_requests(n: int) -> list[EditRequest]:
    """`n` facts: the world's own, and from there on the same with each other's targets."""
    own = [case.request for case in default_world().training_cases()]
    return [
        EditRequest(
            str(index),
            own[index % len(own)].subject,
            own[index % len(own)].prompt,
            own[(index + index // len(own)) % len(own)].target,
        )
        for index in range(n)
    ]


def edit_once(n: int, threads: int, cache: Path) -> dict[str, float]:
    """Edit in this process; the cache holds second moments, and no z of these facts."""
    torch.set_num_threads(threads)
    model = load_model("atlas", specs={"atlas": ATLAS}, device="cpu")
    config, _ = Memit.default_config(model)
    resources = Resources(seed=0, cache=cache, corpus=atlas_corpus())
    if n == 0:  # what is made once for all edits
        Memit(config).prepare(model, [], resources, Share(0, 1))
        return {}
    requests = make_requests(n)
    began = time.perf_counter()
    Memit(config).edit(model, requests, resources)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "peak_bytes": 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Edit in a process for each n, and fit exponents."""
    rows: list[dict[str, Any]] = []
    for n in args.n_edits:
        runs = []
        for _ in range(args.repeats if n <= args.most_repeated else 1):
            with tempfile.TemporaryDirectory() as cache:
                start_process(0, args.threads, cache)
                runs.append(start_process(n, args.threads, cache))
        runs.sort(key=lambda run: run["seconds"])
        rows.append({"what": f"edit, n = {n}", "n": n, **runs[len(runs) // 2]})
    smallest = rows[0]["peak_bytes"]
    for row in rows:
        row["bytes_a_fact"] = (row["peak_bytes"] - smallest) / max(1, row["n"] - rows[0]["n"])
    fitted = [row for row in rows if row["n"] >= _FITTED_FROM]
    if len(fitted) > 1:
        rows.append({"what": "exponent of seconds", "exponent": fit(fitted, "seconds")})
    return rows


def start_process(n: int, threads: int, cache: str) -> dict[str, float]:
    """Edit `n` facts in a new process."""
    command = [sys.executable, __file__, "--one", str(n), "--cache", cache]
    command += ["--threads", str(threads)]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(said.stdout)
    return found


def fit(rows: list[dict[str, Any]], quantity: str) -> float:
    """The slope of log quantity over log n, by least squares."""
    x = [math.log(row["n"]) for row in rows]
    y = [math.log(row[quantity]) for row in rows]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return slope / sum((a - mean_x) ** 2 for a in x)


def main() -> None:
    """Parse the command line, measure, and record; `--one` is what it starts itself with."""
    parser = make_parser(__doc__)
    parser.add_argument("--n-edits", type=int, nargs="+", default=[1, 10, 100, 1_000, 10_000])
    parser.add_argument("--most-repeated", type=int, default=1_000, help="larger n run once")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(edit_once(args.one, args.threads, args.cache)))
    else:
        record(args, {"model": "atlas", "editor": "memit"}, measure(args))


if __name__ == "__main__":
    main()
