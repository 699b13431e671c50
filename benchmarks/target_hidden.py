"""Benchmark: z of a batch of edits by suffix replay, against one edit at a time.

    python benchmarks/target_hidden.py --out benchmarks/results/target_hidden.json

The slow side runs the whole model on whole rows, with logits everywhere, for each edit by itself;
it is timed on some of the edits, of all lengths.
"""

from pathlib import Path
from typing import Any

import torch
from one_at_a_time import optimize_one
from side_by_side import make_parser, record, time_in_turns
from speed_work import DEFAULT_WORK, SpeedWork, choose_typical
from targets import find_targets
from torch import Tensor

from editbench.editors.targets.target_hidden import TargetHidden


def measure(work: SpeedWork, n: int, n_slow: int, repeats: int) -> dict[str, Any]:
    """Run both sides in turns for `n` edits."""
    requests = work.more_requests(n)
    some = choose_typical(work, requests, n_slow)

    def optimize_some() -> list[Tensor]:
        return [
            optimize_one(work.model, requests[index], work.config, work.prefixes.flat)
            for index in some
        ]

    def optimize_all() -> TargetHidden:
        return find_targets(work.model, requests, work.config, work.prefixes)

    (slow, plain), (fast, replayed) = time_in_turns([optimize_some, optimize_all], repeats)
    slow *= n / len(some)
    differences = [
        float((one - other).norm() / one.norm())
        for one, other in zip(plain, replayed.states[some], strict=True)
    ]
    return {
        "what": f"z, n = {n}",
        "slow": slow,
        "fast": fast,
        "ratio": slow / fast,
        "difference": max(differences),
        "n_timed_slow": len(some),
        "mean_steps": float(replayed.n_steps.double().mean()),
    }


def main() -> None:
    """Parse the command line, measure, and record."""
    parser = make_parser(__doc__)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument("--n-edits", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--n-slow", type=int, default=8, help="edits of the slow side")
    parser.add_argument("--n-steps", type=int, help="of z; by default those of the work")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = SpeedWork.read(args.work).shortened(args.n_steps)
    rows = [measure(work, n, args.n_slow, args.repeats) for n in args.n_edits]
    settings = {"model": args.work.name, "dtype": "float32", "slow": "one edit at a time"}
    record(args, settings, rows)


if __name__ == "__main__":
    main()
