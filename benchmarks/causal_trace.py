"""Benchmark: all cells of a prompt's causal trace by replay, against one cell at a time.

    python benchmarks/causal_trace.py --out benchmarks/results/causal_trace.json

Two models are traced: that in `--work`, a folder with `model/` (a configuration and a tokenizer;
weights are made with a seed) and `requests.json`, and the embedded one about its own world. Both
sides trace the same prompts with the same noise. Seconds are per prompt; the difference is the
worst relative one of a score.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from one_cell_at_a_time import trace_cells
from side_by_side import make_parser, record, time_in_turns
from speed_work import DEFAULT_WORK, make_model, read_requests

from editbench.atlas import default_world
from editbench.models.editable import EditableModel
from editbench.models.loading import load_model
from editbench.plugins.atlas import ATLAS
from editbench.tracing.facts import KnownFact, facts_of_cases
from editbench.tracing.noise import measure_spread
from editbench.tracing.prompts import prompt_of
from editbench.tracing.settings import KINDS, Kind, TraceSettings, default_window
from editbench.tracing.tracer import Tracer
from editbench.tracing.traces import PromptTrace, TracedPrompt


def read_work(folder: Path) -> tuple[EditableModel, list[KnownFact]]:
    """Make the model, and take the requests' prompts."""
    facts = []
    for request in read_requests(folder / "requests.json"):
        start = request.prompt.index("{}")
        text = request.prompt.replace("{}", request.subject)
        facts.append(KnownFact(request.case_id, request.subject, text, start, "?"))
    return make_model(folder / "model"), facts


def choose_prompts(
    name: str, work: Path, n_prompts: int
) -> tuple[EditableModel, list[TracedPrompt]]:
    """The model and the prompts of both sides, evenly spaced over the facts."""
    if name == "atlas":
        model = load_model("atlas", specs={"atlas": ATLAS}, device="cpu")
        facts = facts_of_cases(default_world().cases(100))
    else:
        model, facts = read_work(work)
    some = facts[:: max(1, len(facts) // n_prompts)][:n_prompts]
    return model, [prompt_of(model, fact) for fact in some]


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run both sides in turns on one model."""
    model, prompts = choose_prompts(name, args.work, args.n_prompts)
    n_layers = model.architecture.n_layers
    settings = TraceSettings(
        noise_level=3 * measure_spread(model, [prompt.fact for prompt in prompts]),
        n_samples=10,
        window=default_window(n_layers),
        noise_source="prompt",
        seed=0,
        severed=False,
    )

    def trace_plainly() -> list[dict[Kind, np.ndarray]]:
        return [
            {kind: trace_cells(model, prompt, settings, kind) for kind in KINDS}
            for prompt in prompts
        ]

    def trace_together() -> tuple[Tracer, list[PromptTrace]]:
        tracer = Tracer(model, settings)
        return tracer, [tracer.trace(prompt) for prompt in prompts]

    (slow, plain), (fast, (tracer, traces)) = time_in_turns(
        [trace_plainly, trace_together], args.repeats
    )
    difference = max(
        float((np.abs(trace.scores[kind] - scores) / scores).max())
        for trace, cells in zip(traces, plain, strict=True)
        for kind, scores in cells.items()
    )
    return {
        "what": "all cells of a prompt",
        "model": args.work.name if name == "work" else name,
        "slow": slow / len(prompts),
        "fast": fast / len(prompts),
        "ratio": slow / fast,
        "difference": difference,
        "n_layers": n_layers,
        "n_prompts": len(prompts),
        "mean_tokens": statistics.mean(len(prompt.token_ids) for prompt in prompts),
        "n_samples": settings.n_samples,
        "window": settings.window,
        "replay_failure": tracer.replay_failure,
    }


def main() -> None:
    """Parse the command line, measure, and record."""
    parser = make_parser(__doc__)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument("--models", nargs="+", choices=["work", "atlas"], default=["work", "atlas"])
    parser.add_argument("--n-prompts", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record(args, {"kinds": KINDS}, [measure(name, args) for name in args.models])


if __name__ == "__main__":
    main()
