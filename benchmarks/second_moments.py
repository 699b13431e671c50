"""Benchmark: second moments of all layers in one pass, against one pass a layer.

    python benchmarks/second_moments.py --out benchmarks/results/second_moments.json

`--work` is as for `target_hidden.py`; the texts are the embedded world's. All sides read the same
tokens in the same batches. A pass for one layer is a whole forward, or one that ends at the layer.
``share`` is the ratio over the number of layers. What is added to the moments is the same on all
sides, which keeps it below one, and early layers are cheap to end at.
"""

import statistics
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from side_by_side import make_parser, record, time_in_turns
from speed_work import DEFAULT_WORK, SpeedWork
from torch import nn

from editbench.plugins.atlas import atlas_corpus
from editbench.progress import report_nothing
from editbench.second_moments import corpus_keys
from editbench.second_moments.collection import collect_second_moments
from memit_core import SecondMoment, capture


def forwards_to_the_end() -> AbstractContextManager[object]:
    """Let captures read what passes by, and not end the forward."""

    def capture_only(module: nn.Module, *, inputs_of: list[str], stop: bool) -> object:
        return capture(module, inputs_of=inputs_of)

    return patch.object(corpus_keys, "capture", capture_only)


def mean_difference(found: object, expected: object) -> float:
    """Mean over layers of the relative difference."""
    assert isinstance(found, dict)
    assert isinstance(expected, dict)
    return statistics.fmean(
        float((found[layer].moment() - moment.moment()).norm() / moment.moment().norm())
        for layer, moment in expected.items()
    )


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = make_parser(__doc__)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument("--n-tokens", type=int, default=5_000)
    parser.add_argument("--layers", type=int, nargs="+", help="by default those MEMIT writes to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = SpeedWork.read(args.work)
    model = work.model
    layers = args.layers or list(work.config.critical_layers)
    corpus = atlas_corpus()

    def collect(some: list[int]) -> dict[int, SecondMoment]:
        return collect_second_moments(model, corpus, some, args.n_tokens, report_nothing)

    def collect_apart() -> dict[int, SecondMoment]:
        return {layer: collect([layer])[layer] for layer in layers}

    def collect_by_whole_passes() -> dict[int, SecondMoment]:
        with forwards_to_the_end():
            return collect_apart()

    sides = {
        "whole": collect_by_whole_passes,
        "ended": collect_apart,
        "one": partial(collect, layers),
    }
    timed = time_in_turns(list(sides.values()), args.repeats)
    outcomes = dict(zip(sides, timed, strict=True))
    fast, together = outcomes["one"]
    rows = []
    for name, what in (("whole", "whole forwards"), ("ended", "forwards that end at the layer")):
        slow, apart = outcomes[name]
        rows.append(
            {
                "what": f"{len(layers)} layers, {args.n_tokens:,} tokens, against {what}",
                "slow": slow,
                "fast": fast,
                "ratio": slow / fast,
                "share": slow / fast / len(layers),
                "tokens_a_second": args.n_tokens / fast,
                "difference": mean_difference(together, apart),
            }
        )
    settings = {"model": args.work.name, "layers": layers, "d_key": model.d_key(layers[0])}
    record(args, settings, rows)


if __name__ == "__main__":
    main()
