"""Benchmark: all cells of a prompt's causal trace by replay, against one cell at a time.

    python benchmarks/causal_trace.py --work ../shared/reference/speed --out RESULT.json

`--work` is a folder with `model/` (a configuration and a tokenizer; weights are made with a seed)
and `requests.json`; without it the embedded model and world are traced. Both sides run in turns in
one process on the same prompts, with the same noise; the ratio of the medians is what counts, since
these machines are noisy.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from one_cell_at_a_time import trace_one
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from editbench.atlas import default_world
from editbench.models.editable import EditableModel
from editbench.models.loading import load_model
from editbench.plugins.atlas import ATLAS
from editbench.tracing.facts import KnownFact, facts_of_cases
from editbench.tracing.noise import draw_noise, measure_spread
from editbench.tracing.prompts import prompt_of
from editbench.tracing.settings import KINDS, TraceSettings, default_window
from editbench.tracing.tracer import Tracer
from editbench.tracing.traces import TracedPrompt


def read_work(folder: Path) -> tuple[EditableModel, list[KnownFact]]:
    """Make the model, and take the requests' prompts."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder / "model")
    network = AutoModelForCausalLM.from_config(config).float()
    model = EditableModel(network, AutoTokenizer.from_pretrained(folder / "model"), name="speed")
    records = json.loads((folder / "requests.json").read_text())
    facts = []
    for record in records:
        asked = record["requested_rewrite"]
        start = asked["prompt"].index("{}")
        text = asked["prompt"].replace("{}", asked["subject"])
        facts.append(KnownFact(str(record["case_id"]), asked["subject"], text, start, "?"))
    return model, facts


def choose_prompts(args: argparse.Namespace) -> tuple[str, EditableModel, list[TracedPrompt]]:
    """The model and the prompts of both sides, evenly spaced over the facts."""
    if args.work is None:
        model = load_model("atlas", specs={"atlas": ATLAS}, device="cpu")
        name, facts = "atlas", facts_of_cases(default_world().cases(100))
    else:
        (model, facts), name = read_work(args.work), str(args.work.name)
    some = facts[:: max(1, len(facts) // args.n_prompts)][: args.n_prompts]
    return name, model, [prompt_of(model, fact) for fact in some]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run both sides in turns."""
    torch.set_num_threads(args.threads)
    name, model, prompts = choose_prompts(args)
    n_layers = model.architecture.n_layers
    settings = TraceSettings(
        noise_level=3 * measure_spread(model, [prompt.fact for prompt in prompts]),
        n_samples=10,
        window=default_window(n_layers),
        noise_source="prompt",
        seed=0,
        severed=False,
    )
    slow, fast, worst = [], [], 0.0
    for _ in range(args.repeats):
        began = time.perf_counter()
        plain = [
            {
                (kind, token, layer): trace_one(
                    model,
                    prompt,
                    noise,
                    kind=kind,
                    token=token,
                    layer=layer,
                    window=settings.window,
                )
                for kind in KINDS
                for token in range(len(prompt.token_ids))
                for layer in range(n_layers)
            }
            for prompt in prompts
            for noise in [draw_noise(model, prompt, settings)]
        ]
        slow.append((time.perf_counter() - began) / len(prompts))
        began = time.perf_counter()
        tracer = Tracer(model, settings)
        replayed = [tracer.trace(prompt) for prompt in prompts]
        fast.append((time.perf_counter() - began) / len(prompts))
        for scores, trace in zip(plain, replayed, strict=True):
            for (kind, token, layer), score in scores.items():
                found = trace.scores[kind][token, layer]
                worst = max(worst, abs(found - score) / max(score, 1e-12))
    return {
        "benchmark": "causal_trace",
        "model": name,
        "n_layers": n_layers,
        "n_prompts": len(prompts),
        "mean_tokens": statistics.mean(len(prompt.token_ids) for prompt in prompts),
        "n_samples": settings.n_samples,
        "kinds": list(KINDS),
        "window": settings.window,
        "threads": args.threads,
        "torch": torch.__version__,
        "seconds_per_prompt_one_cell_at_a_time": statistics.median(slow),
        "seconds_per_prompt_replay": statistics.median(fast),
        "ratio": statistics.median(slow) / statistics.median(fast),
        "worst_relative_difference": float(worst),
        "replay_failure": tracer.replay_failure,
    }


def main() -> None:
    """Parse the command line, measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--n-prompts", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    result = measure(parser.parse_args())
    for name, value in result.items():
        print(f"{name:40} {value}")
    if (out := parser.parse_args().out) is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
