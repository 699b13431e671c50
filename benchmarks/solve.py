"""Benchmark: the update of one layer, against one solve with the whole matrix.

    python benchmarks/solve.py --out benchmarks/results/solve.json

Slow side: λC + KᵀK in float64, `torch.linalg.solve` with Kᵀ on the right, and the result times Rᵀ,
as the authors' code computes it. Fast sides: `solve_update` with C itself (primal), and with C's
factors from a file (cached), reading the file included. Each side runs once beforehand, which pays
for what is loaded and shows its memory: what torch allocates at most beside the arguments, in
matrices of d × d. Sizes that do not fit into memory are left out, with a line that says so. With
the largest matrices a turn takes minutes, and each side has one.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from side_by_side import (
    add_most_repeated,
    choose_repeats,
    make_parser,
    record,
    time_in_turns,
)
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from editbench.models.device_memory import free_memory
from editbench.second_moments.factors import load_factor, save_factor
from memit_core import FactorizedSecondMoment, solve_update

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


def needed_bytes(n_edits: int, d_key: int) -> int:
    """What the whole matrix's solve takes: C, three matrices at a time, the right side three times.

    Besides the file of C's factors, which may lie in memory, and the results of all sides.
    """
    return 8 * d_key * (6 * d_key + 3 * n_edits)


def compare(
    n_edits: int, d_key: int, moment: Tensor, file: Path, repeats: int
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
            keys, residuals, load_factor(file, torch.device("cpu"))[0], preservation_weight=WEIGHT
        ),
    }
    matrices = {name: peak_matrices(run, d_key) for name, run in sides.items()}
    timed = time_in_turns(list(sides.values()), repeats)
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
                "slow_matrices": matrices["whole"],
                "fast_matrices": matrices[name],
                "repeats": repeats,
            }
        )
    return rows


def main() -> None:
    """Parse the command line, measure every size that fits, print and write."""
    parser = make_parser(__doc__)
    parser.add_argument("--n", type=int, nargs="+", default=[1, 32, 1_000, 10_000])
    parser.add_argument("--d", type=int, nargs="+", default=[1_024, 4_096, 16_384])
    add_most_repeated(parser, 4_096, "dimensions")
    args = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is chatty
    torch.set_num_threads(args.threads)
    memory = free_memory(torch.device("cpu"))
    rows = []
    left_out = []
    with tempfile.TemporaryDirectory() as folder:
        for d_key in args.d:
            fitting = [n for n in args.n if needed_bytes(n, d_key) <= memory]
            for n_edits in sorted(set(args.n) - set(fitting)):
                left_out.append(f"n = {n_edits:,}, d = {d_key:,}")
                print(f"{left_out[-1]}: left out, it does not fit into {memory / 1e9:.1f} GB")
            if not fitting:
                continue
            moment = make_moment(d_key)
            file = Path(folder) / f"{d_key}.safetensors"
            save_factor(file, FactorizedSecondMoment(moment), {})
            for n_edits in fitting:
                rows += compare(n_edits, d_key, moment, file, choose_repeats(args, d_key))
            file.unlink()
            del moment
    settings = {"preservation_weight": WEIGHT, "dtype": "float64", "left_out": left_out}
    record(args, settings, rows)


if __name__ == "__main__":
    main()
