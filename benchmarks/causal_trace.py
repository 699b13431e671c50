"""Benchmark: all cells of a prompt's causal trace by replay, against one cell at a time.

    python benchmarks/causal_trace.py --work ../shared/reference/speed --out RESULT.json

`--work` is a folder with `model/` (a configuration and a tokenizer; weights are made with a seed)
and `requests.json`; without it the embedded model and world are traced. Both sides trace the same
prompts with the same noise. Seconds are per prompt; the difference is the worst relative one of a
score.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from one_cell_at_a_time import trace_cells
from side_by_side import make_parser, record, time_in_turns
from speed_work import make_model, read_requests

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


def choose_prompts(args: argparse.Namespace) -> tuple[str, EditableModel, list[TracedPrompt]]:
    """The model and the prompts of both sides, evenly spaced over the facts."""
    if args.work is None:
        model = load_model("atlas", specs={"atlas": ATLAS}, device="cpu")
        name, facts = "atlas", facts_of_cases(default_world().cases(100))
    else:
        (model, facts), name = read_work(args.work), str(args.work.name)
    some = facts[:: max(1, len(facts) // args.n_prompts)][: args.n_prompts]
    return name, model, [prompt_of(model, fact) for fact in some]


def main() -> None:
    """Measure both sides in turns, and record."""
    parser = make_parser(__doc__)
    parser.add_argument("--work", type=Path, help="a folder with model/ and requests.json")
    parser.add_argument("--n-prompts", type=int, default=4)
    args = parser.parse_args()
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
    shared = {
        "model": name,
        "n_layers": n_layers,
        "n_prompts": len(prompts),
        "mean_tokens": statistics.mean(len(prompt.token_ids) for prompt in prompts),
        "n_samples": settings.n_samples,
        "kinds": KINDS,
        "window": settings.window,
        "replay_failure": tracer.replay_failure,
    }
    row = {
        "what": "all cells of a prompt",
        "slow": slow / len(prompts),
        "fast": fast / len(prompts),
        "ratio": slow / fast,
        "difference": difference,
    }
    record(args, shared, [row])


if __name__ == "__main__":
    main()
