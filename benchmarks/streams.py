"""Benchmark: a stream of batches, against as many single edits of that size.

    python benchmarks/streams.py --out benchmarks/results/streams.json

Both sides write the same facts, single edits into the unedited model and the stream into what it
has made of it. Both find second moments and their factors in the cache, and no z. So what a stream
costs more is what it carries: all updates so far, and what was written before. A z that is easier
to find, or harder, on an edited model is a part of that; steps are counted beside.

One model is the embedded one. The other has random weights and keys far wider than its states,
where factors weigh most: solving costs there what finding z costs elsewhere.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from growth import make_requests
from side_by_side import make_parser, record, time_in_turns
from speed_work import random_moments, write_moments
from transformers import GPT2Config, GPT2LMHeadModel

from editbench.editors.base import Editor, Inputs, Share
from editbench.edits.edit import Edit
from editbench.models.editable import EditableModel
from editbench.models.loading import load_model
from editbench.plugins.atlas import ATLAS, atlas_corpus
from editbench.plugins.manager import PluginManager
from editbench.requests import EditRequest, cut_batches
from editbench.testing import tiny_tokenizer, toy_cases

EDITORS = ("memit", "memit-history", "encore", "emmet", "alphaedit", "ultraedit", "ft-w")
_WIDE = ("memit", "memit-history", "encore", "alphaedit")


def make_wide(d_key: int) -> EditableModel:
    """Random weights, states of 32 dimensions, keys of `d_key`."""
    tokenizer = tiny_tokenizer()
    sizes = {"n_positions": 128, "n_embd": 32, "n_layer": 4, "n_head": 2, "n_inner": d_key}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes))
    return EditableModel(network, tokenizer, name=f"random, d_key {d_key:,}")


def make_facts(n: int) -> list[EditRequest]:
    """`n` facts for the random model: those of the tests, about more people."""
    own = [case.request for case in toy_cases(32)]
    return [
        EditRequest(
            str(index),
            f"{own[index % len(own)].subject} {index // len(own)}",
            own[index % len(own)].prompt,
            own[index % len(own)].target,
        )
        for index in range(n)
    ]


def count_steps(edits: Sequence[Edit], *, is_stream: bool) -> float | None:
    """Steps of z a fact, where the editor has any."""
    told = [edit.card.extra.get("target_steps") for edit in edits]
    if None in told:
        return None
    return told[-1] if is_stream else sum(told) / len(told)


def measure(
    editor: Editor,
    model: EditableModel,
    requests: Sequence[EditRequest],
    inputs: Inputs,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Run both sides in turns, each with a cache of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared, used = folder / "prepared", folder / "used"
        resources = inputs.resources(0, prepared)
        editor.prepare(model, requests[:1], resources, Share(0, 1))
        for _ in editor.edit_stream(model, cut_batches(requests[:2], 1), resources):
            pass  # with the second one, factors are made
        prepared.mkdir(exist_ok=True)
        for path in prepared.glob("target_hidden*"):
            path.unlink()

        def fresh() -> Any:
            shutil.rmtree(used, ignore_errors=True)
            shutil.copytree(prepared, used, dirs_exist_ok=True)
            return inputs.resources(0, used)

        batches = cut_batches(requests, args.batch_size)

        def write_apart() -> list[Edit]:
            given = fresh()
            return [editor.edit(model, batch, given) for batch in batches]

        def write_on() -> list[Edit]:
            return list(editor.edit_stream(model, batches, fresh()))

        (single, apart), (stream, edits) = time_in_turns([write_apart, write_on], args.repeats)
    return {
        "what": f"{editor.name}, {len(batches)} batches of {args.batch_size}",
        "model": model.name,
        "single_seconds": single,
        "stream_seconds": stream,
        "cost": stream / single,
        "single_steps": count_steps(apart, is_stream=False),
        "stream_steps": count_steps(edits, is_stream=True),
    }


def main() -> None:
    """Parse the command line, measure, and record."""
    parser = make_parser(__doc__)
    parser.add_argument("--n-batches", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--d-key", type=int, default=3_072, help="of the random model")
    parser.add_argument("--editors", nargs="+", choices=EDITORS, default=list(EDITORS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]  # what else the machine was doing
    n = args.n_batches * args.batch_size
    plugins = PluginManager()
    atlas = load_model("atlas", specs={"atlas": ATLAS}, device="cpu")
    wide = make_wide(args.d_key)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "moments.safetensors"
        write_moments(path, wide, random_moments(wide, tuple(range(4))))
        work = (
            (atlas, make_requests(n), Inputs(corpus=atlas_corpus()), EDITORS),
            (wide, make_facts(n), Inputs(second_moments=path), _WIDE),
        )
        rows = []
        for model, requests, inputs, names in work:
            for each in (each for each in names if each in args.editors):
                kind = plugins.get_editor(each)
                editor = kind(kind.default_config(model)[0])
                rows.append(measure(editor, model, requests, inputs, args))
    record(args, {"dtype": "float32", "load_before": load}, rows)


if __name__ == "__main__":
    main()
