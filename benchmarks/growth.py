"""Benchmark: how an edit grows with the number of facts: seconds and peak memory.

    python benchmarks/growth.py --out benchmarks/results/growth.json

MEMIT writes n facts into the embedded model with its default hyperparameters, each time in a
process of its own, whose peak memory is measured. Second moments and context prefixes are made
beforehand. Exponents are slopes of log seconds, and of log peak memory beyond that of the first n,
over log n, from 100 facts on.

Bytes a fact are those that each further one takes, compared with the n before. Beside what was
measured stands what is held on purpose: the plan's peak (states of all rows at the first critical
layer, keys, residuals, their system, and the work that is done at a time), and z and h, which the
plan leaves out.
"""

import argparse
import itertools
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from side_by_side import add_most_repeated, choose_repeats, make_parser, record

from editbench.atlas import default_world
from editbench.costs.stage import ExpectedCache
from editbench.editors.base import Resources, Share
from editbench.editors.memit import Memit, MemitConfig
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
    assert isinstance(config, MemitConfig)
    resources = Resources(seed=0, cache=cache, corpus=atlas_corpus())
    if n == 0:  # what is made once for all edits
        Memit(config).prepare(model, [], resources, Share(0, 1))
        return {}
    requests = make_requests(n)
    began = time.perf_counter()
    Memit(config).edit(model, requests, resources)
    seconds = time.perf_counter() - began
    peak = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stages = Memit(config).estimate(model, requests, Resources(seed=0), ExpectedCache())
    planned = max(stage.n_peak_bytes for stage in stages if stage.name != "second moments")
    states = 2 * n * model.architecture.d_model * 4  # z and h, float32
    return {"seconds": seconds, "peak_bytes": peak, "planned_bytes": planned + states}


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Edit in a process for each n, and fit exponents."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared"
        start_process(0, args.threads, prepared)
        for n in args.n_edits:
            runs = []
            repeats = choose_repeats(args, n)
            for index in range(repeats):  # each with a cache that holds no z yet
                cache = shutil.copytree(prepared, Path(folder) / f"{n}-{index}")
                runs.append(start_process(n, args.threads, cache))
                shutil.rmtree(cache)
            runs.sort(key=lambda run: run["seconds"])
            median = runs[len(runs) // 2]
            rows.append({"what": f"edit, n = {n:,}", "n": n, "repeats": repeats, **median})
    first, *larger = rows
    for smaller, row in itertools.pairwise(rows):
        for name in ("peak_bytes", "planned_bytes"):
            row[f"{name}_a_fact"] = (row[name] - smaller[name]) / (row["n"] - smaller["n"])
    fitted = [row for row in larger if row["n"] >= _FITTED_FROM]
    if len(fitted) < 2:
        return rows
    seconds = [row["seconds"] for row in fitted]
    memory = [row["peak_bytes"] - first["peak_bytes"] for row in fitted]
    sizes = [row["n"] for row in fitted]
    since = f"from n = {sizes[0]:,} on"
    exponents = [
        {"what": f"exponent of seconds, {since}", "exponent": fit(sizes, seconds)},
        {
            "what": f"exponent of memory beyond that of n = {first['n']:,}, {since}",
            "exponent": fit(sizes, memory),
        },
    ]
    return rows + exponents


def start_process(n: int, threads: int, cache: Path) -> dict[str, float]:
    """Edit `n` facts in a new process."""
    command = [sys.executable, __file__, "--one", str(n), "--cache", str(cache)]
    command += ["--threads", str(threads)]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(said.stdout)
    return found


def fit(sizes: Sequence[int], quantities: Sequence[float]) -> float:
    """The slope of log quantity over log n, by least squares."""
    x = [math.log(size) for size in sizes]
    y = [math.log(quantity) for quantity in quantities]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return slope / sum((a - mean_x) ** 2 for a in x)


def main() -> None:
    """Parse the command line, measure, and record; `--one` is what it starts itself with."""
    parser = make_parser(__doc__)
    parser.add_argument("--n-edits", type=int, nargs="+", default=[1, 10, 100, 1_000, 10_000])
    add_most_repeated(parser, 1_000, "facts")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(edit_once(args.one, args.threads, args.cache)))
    else:
        record(args, {"model": "atlas", "editor": "memit"}, measure(args))


if __name__ == "__main__":
    main()
