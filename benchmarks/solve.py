"""Benchmark: the update of one layer, against one solve with the whole matrix.

    python benchmarks/solve.py --d 1024 4096 16384 --n 1 32 1000 10000 --out RESULT.json

Slow side: λC + KᵀK in float64, `torch.linalg.solve` with Kᵀ on the right, and the result times Rᵀ,
as the authors' code computes it. Fast sides: `solve_update` with C itself (primal), and with C's
factors from a file (cached), reading the file included. Sizes that do not fit into memory are left
out, with a line that says so. Memory is what torch allocates at most beside the arguments, in
matrices of d × d.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from side_by_side import make_parser, record, time_in_turns
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from memit_core import FactorizedSecondMoment, load_factor, save_factor, solve_update

WEIGHT = 15_000.0


def make_moment(d_key: int) -> Tensor:
    """A second moment whose scales spread over three decades and whose neighbors correlate."""
    place = torch.arange(d_key, dtype=torch.float64)
    scale = torch.logspace(0, -1.5, d_key, dtype=torch.float64)
    return torch.exp(-(place[:, None] - place).abs() / 20) * scale[:, None] * scale


def solve_whole(keys: Tensor, residuals: Tensor, moment: Tensor) -> Tensor:
    """The update by one solve with the whole matrix."""
    wide = keys.double()
    system = WEIGHT * moment + wide.T @ wide
    return residuals.double().T @ torch.linalg.solve(system, wide.T).T


def peak_matrices(run: Callable[[], object], d_key: int) -> float:
    """Most memory that `run` holds at a time, in float64 matrices of d_key × d_key."""
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiled:
        run()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak / (8 * d_key**2)


def compare(
    n_edits: int, d_key: int, moment: Tensor, file: Path, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Run the sides of one size in turns."""
    generator = torch.Generator().manual_seed(0)
    scale = moment.diagonal().sqrt().float()
    keys = torch.randn(n_edits, d_key, generator=generator) * scale
    residuals = torch.randn(n_edits, d_key // 4, generator=generator)
    sides: dict[str, Callable[[], object]] = {
        "whole": lambda: solve_whole(keys, residuals, moment),
        "primal": lambda: solve_update(keys, residuals, moment, preservation_weight=WEIGHT),
        "cached": lambda: solve_update(
            keys, residuals, load_factor(file).factorized, preservation_weight=WEIGHT
        ),
    }
    for run in sides.values():  # the first turn pays for memory and libraries
        run()
    timed = time_in_turns(list(sides.values()), args.repeats)
    outcomes = dict(zip(sides, timed, strict=True))
    slow, expected = outcomes["whole"]
    assert isinstance(expected, Tensor)
    rows = []
    for name in ("primal", "cached"):
        fast, found = outcomes[name]
        assert isinstance(found, Tensor)
        rows.append(
            {
                "what": f"{name}, n = {n_edits:,}, d = {d_key:,}",
                "slow": slow,
                "fast": fast,
                "ratio": slow / fast,
                "difference": float((found - expected).norm() / expected.norm()),
                "slow_matrices": peak_matrices(sides["whole"], d_key),
                "fast_matrices": peak_matrices(sides[name], d_key),
            }
        )
    return rows


def main() -> None:
    """Parse the command line, measure every size that fits, print and write."""
    parser = make_parser(__doc__)
    parser.add_argument("--n", type=int, nargs="+", default=[1, 32, 1_000, 10_000])
    parser.add_argument("--d", type=int, nargs="+", default=[1_024, 2_048])
    args = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is chatty
    torch.set_num_threads(args.threads)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for d_key in args.d:
            if 8 * d_key * (5 * d_key + 3 * max(args.n)) > memory:  # what the slow side takes
                print(f"d = {d_key:,} is left out: it does not fit into {memory / 1e9:.1f} GB")
                continue
            moment = make_moment(d_key)
            file = Path(folder) / f"{d_key}.safetensors"
            save_factor(file, FactorizedSecondMoment(moment), None)
            for n_edits in args.n:
                rows += compare(n_edits, d_key, moment, file, args)
            file.unlink()
    record(args, {"preservation_weight": WEIGHT, "dtype": "float64"}, rows)


if __name__ == "__main__":
    main()
