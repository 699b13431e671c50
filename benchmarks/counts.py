"""Benchmark: what is left to do, counted instead of timed: operations, and padding.

    python benchmarks/counts.py --threads 1 --out benchmarks/results/counts.json

Operations are floating-point operations of matrix products, counted by torch as the code runs
them. Those of z and of a causal trace are set against the usual way, `one_at_a_time.py` and
`one_cell_at_a_time.py`, on the model with random weights in `--work`. Steps of z are alike, and so
are cells: two steps and one cell are run, and the rest is extrapolated. What is run once for a
prompt length or a model, to compare replay with the model's own forward, does not count in a trace
and does in z.

What the keys of several layers take is planned, for models of published sizes without weights, as
is one forward of the same rows up to the last of these layers.

Padding is the share of padded tokens: in the chunks that z is optimized in, from an offset to the
end of its row, and in the batches of text that second moments are collected from. No model runs
for it. On a GPU chunks and batches are larger; that is counted here as well.
"""

import argparse
import copy
import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from gpu import random_model
from one_at_a_time import optimize_one
from one_cell_at_a_time import trace_one
from side_by_side import make_parser, record
from speed_work import DEFAULT_WORK, SpeedWork
from targets import find_targets
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from editbench.datasets.corpus import Corpus
from editbench.editors.context_prefixes import expect_prefixes, sample_context_prefixes
from editbench.editors.keys.sweep_batches import estimate_insertion
from editbench.editors.memit import MemitConfig
from editbench.editors.subject_tokens import target_row
from editbench.editors.targets.batches import chunk_tasks
from editbench.editors.targets.tasks import make_tasks
from editbench.models.continuing import find_continuing
from editbench.models.editable import EditableModel
from editbench.models.loading import load_model
from editbench.plugins.atlas import ATLAS, atlas_corpus
from editbench.replay.suffix_replay import SuffixReplay
from editbench.requests import EditRequest
from editbench.second_moments.collection import WINDOW
from editbench.second_moments.collection_work import MAX_LENGTH
from editbench.second_moments.corpus_keys import WHOLE, CorpusReader, batch_texts
from editbench.tracing.facts import KnownFact
from editbench.tracing.noise import draw_noise, measure_spread
from editbench.tracing.prompts import prompt_of
from editbench.tracing.settings import KINDS, TraceSettings, default_window
from editbench.tracing.tracer import Tracer
from editbench.tracing.traces import TracedPrompt

# Lengths of texts like Wikipedia's: so many tokens half of them have, and how far they scatter.
_MEDIAN_LENGTH, _LENGTH_SPREAD = 330, 1.0


@dataclass
class Counted:
    """Floating-point operations of what ran in a ``with`` body of `counting`."""

    operations: int = 0


@contextmanager
def counting() -> Iterator[Counted]:
    """Count within a ``with`` body; bodies may be nested."""
    counted = Counted()
    with FlopCounterMode(display=False) as counter:
        yield counted
    counted.operations = counter.get_total_flops()


def extrapolate(measured: Sequence[int], n_steps: int) -> int:
    """Operations of `n_steps` steps, of which the last only measures, from those of one and two."""
    one_step, two_steps = measured
    return one_step + (n_steps - 1) * (two_steps - one_step)


def count_target(work: SpeedWork, n: int) -> dict[str, Any]:
    """Operations of z of `n` edits on both sides, if none of them stops early."""
    requests = work.more_requests(n)
    find_continuing(work.model)  # once for a model, whatever is done with it
    n_steps = work.config.n_steps
    configs = [
        work.config.updated({"n_steps": few, "stop_loss": -1e9}, "benchmark") for few in (1, 2)
    ]
    slow_runs = [count_one_at_a_time(work, requests, config) for config in configs]
    fast_runs, replays = zip(
        *(count_replayed(work, requests, config) for config in configs), strict=True
    )
    slow = extrapolate(slow_runs, n_steps)
    fast = extrapolate(fast_runs, n_steps)
    setup = fast_runs[0] - replays[0]
    return {
        "what": f"z, n = {n}",
        "slow_operations": slow,
        "fast_operations": fast,
        "ratio": slow / fast,
        "setup_operations": setup,
        "setup_share": setup / fast,
        "ratio_of_steps": slow / (fast - setup),
    }


def count_one_at_a_time(
    work: SpeedWork, requests: Sequence[EditRequest], config: MemitConfig
) -> int:
    """Operations of the usual way, which depend on how long an edit's longest row is alone."""
    tokens, prefixes = work.model.tokens, work.prefixes.flat
    of_width: dict[int, list[EditRequest]] = {}
    for request in requests:
        rows = [target_row(tokens, request, prefix).token_ids for prefix in prefixes]
        rows.append(tuple(tokens.encode(f"{request.subject} is a")))
        of_width.setdefault(max(map(len, rows)), []).append(request)
    total = 0
    for alike in of_width.values():
        with counting() as counted:
            optimize_one(work.model, alike[0], config, prefixes)
        total += len(alike) * counted.operations
    return total


def count_replayed(
    work: SpeedWork, requests: Sequence[EditRequest], config: MemitConfig
) -> tuple[int, int]:
    """Operations of suffix replay, and those of its forward passes with offsets alone."""
    plain = SuffixReplay.logits
    of_replays = 0

    def logits(self: SuffixReplay, offsets: Tensor) -> Tensor:
        nonlocal of_replays
        if not torch.is_grad_enabled():  # compared with the model's own forward
            return plain(self, offsets)
        with counting() as counted:
            found = plain(self, offsets)
        of_replays += counted.operations
        return found

    with patch.object(SuffixReplay, "logits", logits), counting() as counted:
        found = find_targets(work.model, requests, config, work.prefixes)
    assert found.replay_failure is None, found.replay_failure
    return counted.operations, of_replays


def count_trace(
    model: EditableModel, prompt: TracedPrompt, settings: TraceSettings
) -> dict[str, Any]:
    """Operations of all cells of a prompt on both sides."""
    noise = draw_noise(model, prompt, settings)
    n_cells = len(KINDS) * len(prompt.token_ids) * model.architecture.n_layers
    with counting() as one_cell:
        trace_one(model, prompt, noise, kind="hidden", token=0, layer=0, window=settings.window)
    tracer = Tracer(model, settings)
    tracer.trace(prompt, only_last_subject=True)  # compares with the model's own forward
    with counting() as counted:
        tracer.trace(prompt)
    assert tracer.replay_failure is None, tracer.replay_failure
    slow = n_cells * one_cell.operations
    return {
        "what": f"all cells of a prompt, {prompt.subject.start} tokens before the subject",
        "slow_operations": slow,
        "fast_operations": counted.operations,
        "ratio": slow / counted.operations,
        "n_tokens": len(prompt.token_ids),
        "n_tokens_subject": len(prompt.subject),
    }


def count_keys(name: str, n: int) -> list[dict[str, Any]]:
    """Planned operations of the keys of a published model's layers, and of all up to the last."""
    shape = random_model.SHAPES[name]
    model = random_model.make_model(shape, dtype=torch.bfloat16, device="meta")
    config = random_model.make_config(shape)
    requests = random_model.make_requests(shape, n)
    lengths = (config.context_prefix_length,)
    prefixes = expect_prefixes(model.tokens, None, config.n_context_prefixes, lengths)

    def plan(layers: Sequence[int]) -> float:
        keys, _ = estimate_insertion(model, requests, prefixes, config.key_weighting, layers)
        return keys.n_flops

    last = config.critical_layers[-1]
    forward = plan([last])
    return [
        {
            "what": f"{name}, layers {layers[0]} to {last}, n = {n:,}",
            "operations": plan(layers),
            "forwards": plan(layers) / forward,
        }
        for layers in (config.critical_layers, tuple(range(last + 1)))
    ]


def choose_prompts(work: SpeedWork) -> list[TracedPrompt]:
    """A prompt of middle length for each place at which the requests' subjects begin."""
    of_place: dict[int, list[TracedPrompt]] = {}
    for each in work.requests:
        fact = KnownFact(each.case_id, each.subject, each.text, each.subject_start, "?")
        prompt = prompt_of(work.model, fact)
        of_place.setdefault(prompt.subject.start, []).append(prompt)
    alike = (
        sorted(prompts, key=lambda prompt: len(prompt.token_ids))
        for _, prompts in sorted(of_place.items())
    )
    return [prompts[len(prompts) // 2] for prompts in alike]


def count_padding(what: str, batches: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The share of padding in batches, each given by the lengths of its rows."""
    n_real = sum(map(sum, batches))
    n_padded = sum(len(lengths) * max(lengths) for lengths in batches)
    return {
        "what": what,
        "n_tokens": n_real,
        "n_batches": len(batches),
        "padding": 1 - n_real / n_padded,
    }


def count_chunks(
    what: str,
    model: EditableModel,
    requests: Sequence[EditRequest],
    prefixes: Sequence[str],
    layer: int,
) -> list[dict[str, Any]]:
    """Padding in the chunks of z, as they are on a CPU and on a GPU."""
    tasks = make_tasks(model.tokens, requests, prefixes)
    rows = []
    for device, title in (("cpu", "CPU"), ("cuda", "GPU")):
        with planned_for(model, device):
            chunks = list(chunk_tasks(model, tasks, layer))
        lengths = [
            [len(row.token_ids) - row.subject_last for task in chunk.rows for row in task.prompts]
            for chunk in chunks
        ]
        rows.append(count_padding(f"z, {what}, n = {len(requests):,}, {title}", lengths))
    return rows


def count_text(
    what: str, model: EditableModel, corpus: Corpus, n_tokens: int
) -> list[dict[str, Any]]:
    """Padding in the batches that second moments are collected from, as on a CPU and on a GPU."""
    rows = []
    for device, title in (("cpu", "CPU"), ("cuda", "GPU")):
        with planned_for(model, device):
            budget = model.memory.tokens
        longest = min(MAX_LENGTH, model.max_positions or MAX_LENGTH)
        reader = CorpusReader(model, corpus, n_tokens, longest, WHOLE)
        batches: list[list[int]] = []
        while window := reader.take(WINDOW * budget):
            lengths = [len(text) for text in window]
            batches += [[lengths[i] for i in batch.rows] for batch in batch_texts(window, budget)]
        row = count_padding(f"text, {what}, {title}", batches)
        row["what"] = f"text, {what}, {row['n_tokens']:,} tokens, {title}"
        rows.append(row)
    return rows


@contextmanager
def planned_for(model: EditableModel, device: str) -> Iterator[None]:
    """Let a model choose the sizes of batches within a ``with`` body as on another device."""
    model.planned_device = torch.device(device)
    try:
        yield
    finally:
        model.planned_device = None


def text_of_many_lengths() -> tuple[EditableModel, Corpus]:
    """Endless text whose lengths are log-normal, and a model that reads so much at once."""
    shape = copy.deepcopy(random_model.SHAPES["tiny"])
    shape.config.n_positions = MAX_LENGTH
    (some,) = itertools.islice(random_model.make_corpus(shape).texts(), 1)
    words = some.split()

    def write() -> Iterator[str]:
        chance = random.Random("lengths")
        while True:
            n_words = max(1, round(_MEDIAN_LENGTH * chance.lognormvariate(0, _LENGTH_SPREAD)))
            yield " ".join(itertools.islice(itertools.cycle(words), min(n_words, MAX_LENGTH)))

    model = random_model.make_model(shape, dtype=torch.float32, device="cpu")
    return model, Corpus("log-normal lengths", "log-normal lengths", write)


def count_all_padding(args: argparse.Namespace, work: SpeedWork) -> list[dict[str, Any]]:
    """Padding of z's chunks and of batches of text."""
    rows: list[dict[str, Any]] = []
    last = work.config.critical_layers[-1]
    for n in args.n_edits:
        requests = work.more_requests(n)
        rows += count_chunks(work.model.name, work.model, requests, work.prefixes.flat, last)
    shape = random_model.SHAPES["tiny"]
    tiny = random_model.make_model(shape, dtype=torch.float32, device="cpu")
    config = random_model.make_config(shape)
    prefixes = sample_context_prefixes(
        tiny, n_prefixes=config.n_context_prefixes, lengths=(config.context_prefix_length,), seed=0
    )
    for n in args.n_requests:
        requests = random_model.make_requests(shape, n)
        last = config.critical_layers[-1]
        rows += count_chunks("CounterFact's lengths", tiny, requests, prefixes.flat, last)
    atlas = load_model("atlas", specs={"atlas": ATLAS}, device="cpu")
    reader, endless = text_of_many_lengths()
    for n_tokens in args.n_tokens:
        rows += count_text("atlas", atlas, atlas_corpus(), n_tokens)
        rows += count_text("log-normal", reader, endless, n_tokens)
    return list({row["what"]: row for row in rows}.values())  # the embedded corpus ends early


def main() -> None:
    """Parse the command line, count, and record."""
    parser = make_parser(__doc__)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument("--n-edits", type=int, nargs="+", default=[32, 256], help="of --work")
    parser.add_argument("--n-requests", type=int, nargs="+", default=[32, 256, 1_000])
    parser.add_argument("--n-tokens", type=int, nargs="+", default=[25_000, 100_000, 1_000_000])
    parser.add_argument("--shapes", nargs="+", default=["gptj", "neox"], help="for keys")
    parser.add_argument("--n-samples", type=int, default=10, help="noise samples of a trace")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = SpeedWork.read(args.work)
    rows = [count_target(work, n) for n in args.n_edits]
    prompts = choose_prompts(work)
    settings = TraceSettings(
        noise_level=3 * measure_spread(work.model, [prompt.fact for prompt in prompts]),
        n_samples=args.n_samples,
        window=default_window(work.model.architecture.n_layers),
        noise_source="prompt",
        seed=0,
        severed=False,
    )
    rows += [count_trace(work.model, prompt, settings) for prompt in prompts]
    rows += [row for name in args.shapes for row in count_keys(name, args.n_requests[-1])]
    rows += count_all_padding(args, work)
    record(args, {"model": args.work.name, "n_samples": args.n_samples}, rows)


if __name__ == "__main__":
    main()
