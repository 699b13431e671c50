"""Benchmark: what `--n-tokens auto` says of its error, against ten times as many tokens.

    python benchmarks/sampling_error.py --out benchmarks/results/sampling_error.json

Second moments of the embedded model's critical layers are collected until the rule says that they
are good enough. Other text, ten times as much, then tells how much more than need be updates with
them move ordinary text. The texts are epochs of the embedded world's, each written anew. Nothing
is timed.
"""

import random
from collections.abc import Iterator
from itertools import count

import torch
from side_by_side import make_parser, record
from torch import Tensor

from editbench.atlas import default_world
from editbench.datasets.corpus import Corpus
from editbench.models.loading import load_model
from editbench.plugins import load_plugins
from editbench.second_moments.collection import collect_second_moments
from editbench.second_moments.corpus_keys import read_keys


def endless_corpus(name: str) -> Corpus:
    """Text like the embedded world's, as much as is asked for."""

    def write() -> Iterator[str]:
        for epoch in count():
            documents = default_world().documents(random.Random(f"{name}/{epoch}"))
            yield from (document.text for document in documents)

    return Corpus(name, name, write)


def measure_excess(sampled: Tensor, truth: Tensor, keys: Tensor) -> float:
    """How much more than need be updates made with one moment move keys that have the other."""
    columns = keys.double().T
    directions = torch.linalg.solve(sampled, columns)
    directions /= (columns * directions).sum(dim=0)
    moved = (directions * (truth @ directions)).sum(dim=0)
    least = 1 / (columns * torch.linalg.solve(truth, columns)).sum(dim=0)
    return float((moved / least).mean()) - 1


def main() -> None:
    """Parse the command line, collect, compare, print and write."""
    parser = make_parser(__doc__)
    parser.add_argument("--factor", type=int, default=10, help="how much more text tells the truth")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model("atlas", specs=load_plugins().models())
    layers = [1, 2, 3]
    notes: list[str] = []

    def note(stage: str, done: int, total: int, note: str = "") -> None:
        notes.append(note)

    some = collect_second_moments(model, endless_corpus("some"), layers, "auto", note)
    n_tokens = some[layers[0]].n_tokens or 0
    more = collect_second_moments(
        model, endless_corpus("more"), layers, args.factor * n_tokens, note
    )
    texts = endless_corpus("keys").texts()
    probes = [model.tokens.encode(text) for text, _ in zip(texts, range(40), strict=False)]
    projections = {layer: model.architecture.projection(layer, "mlp") for layer in layers}
    keys = [batch for batch, _ in read_keys(model, projections, probes)]
    rows = [
        {
            "what": f"layer {layer}, {n_tokens:,} tokens",
            "n_sampled": n_tokens,
            "n_compared": more[layer].n_tokens,
            "excess": measure_excess(
                some[layer].moment(),
                more[layer].moment(),
                torch.cat([batch[layer] for batch in keys]),
            ),
        }
        for layer in layers
    ]
    looks = list(dict.fromkeys(each.split("excess ")[1] for each in notes if "excess" in each))
    record(args, {"model": "atlas", "factor": args.factor, "looks": looks}, rows)


if __name__ == "__main__":
    main()
