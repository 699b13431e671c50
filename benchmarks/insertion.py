"""Benchmark: keys, residuals and solves of all layers, against two full forwards a layer.

    python benchmarks/insertion.py --out benchmarks/results/insertion.json

z is given (random), second moments are those of random keys; nothing is cached on disk.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from side_by_side import make_parser, record, time_in_turns
from speed_work import (
    DEFAULT_WORK,
    SpeedWork,
    compare_updates,
    random_moments,
    write_moments,
)
from targets import keep_targets
from torch import Tensor
from two_forwards_a_layer import insert

from editbench.editors.base import Resources
from editbench.editors.keys.reading import read_hidden
from editbench.editors.memit import Memit
from editbench.editors.subject_tokens import key_row
from editbench.edits.edit import Edit


def measure(
    work: SpeedWork, moments: dict[int, Tensor], n: int, repeats: int, folder: Path
) -> dict[str, Any]:
    """Run both sides in turns for `n` edits."""
    model, layers = work.model, work.config.critical_layers
    requests = work.more_requests(n)
    bare = [key_row(model.tokens, request, "") for request in requests]
    initial = read_hidden(model, bare, layers[-1])
    step = torch.randn(initial.shape, generator=torch.Generator().manual_seed(1))
    targets = initial + 0.75 * initial.norm(dim=1)[:, None] * step / step.norm(dim=1)[:, None]
    write_moments(folder / "moments.safetensors", work.model, moments)
    keep_targets(model, requests, work.config, work.prefixes, targets, initial, folder)
    resources = Resources(
        seed=0,
        cache=folder,
        second_moments=folder / "moments.safetensors",
        context_prefixes=work.prefixes,
    )

    def insert_slowly() -> dict[int, Tensor]:
        return insert(model, requests, work.prefixes, work.config, targets, moments)

    def insert_fast() -> Edit:
        return Memit(work.config).edit(model, requests, resources)

    (slow, updates), (fast, edit) = time_in_turns([insert_slowly, insert_fast], repeats)
    return {
        "what": f"keys and insertion, n = {n}",
        "slow": slow,
        "fast": fast,
        "ratio": slow / fast,
        "difference": compare_updates(model, updates, edit),
    }


def main() -> None:
    """Parse the command line, measure, and record."""
    parser = make_parser(__doc__)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument("--n-edits", type=int, nargs="+", default=[32, 256])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = SpeedWork.read(args.work)
    moments = random_moments(work.model, work.config.critical_layers)
    rows = []
    for n in args.n_edits:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(work, moments, n, args.repeats, Path(folder)))
    settings = {"model": args.work.name, "dtype": "float32", "slow": "two full forwards a layer"}
    record(args, settings, rows)


if __name__ == "__main__":
    main()
