"""Benchmark: what MEMIT's options of z do, each alone: to an edit, and to how long z takes.

    python benchmarks/options.py --out benchmarks/results/options.json

The embedded model is edited with its default hyperparameters and with one option more; z is found
in turns, and the edits that follow are judged by ES, PS, NS and S, their harmonic mean. Offsets are
shared by the facts about a subject, so `share_subjects` is tried with facts of which many have
their subject in common: those of `atlas-training` that do not contradict an earlier one. Steps are
those of an offset, on average.
"""

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from judging import judge
from side_by_side import make_parser, record, time_in_turns
from targets import find_targets, keep_targets

from editbench.atlas import default_world
from editbench.editors.base import Resources
from editbench.editors.context_prefixes import sample_context_prefixes
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.targets.target_hidden import TargetHidden
from editbench.editors.targets.tasks import distinct_groups, group_requests
from editbench.models.editable import EditableModel
from editbench.models.loading import load_model
from editbench.plugins.atlas import ATLAS, atlas_corpus
from editbench.requests import EditCase, EditRequest, resolve_conflicts

Option = Mapping[str, object]
ALONE: Sequence[Option] = ({}, {"stop_at": "argmax"}, {"warm_start": True})
SEVERAL: Sequence[Option] = ({}, {"share_subjects": True})


def measure(
    name: str,
    model: EditableModel,
    cases: Sequence[EditCase],
    default: MemitConfig,
    options: Sequence[Option],
    repeats: int,
    folder: Path,
) -> list[dict[str, Any]]:
    """One row for each option, the first of which is none."""
    requests = [case.request for case in cases]
    prefixes = sample_context_prefixes(
        model,
        n_prefixes=default.n_context_prefixes,
        lengths=(default.context_prefix_length,),
        seed=0,
    )
    configs = [default.updated(option, "benchmark") for option in options]
    sides: list[Callable[[], TargetHidden]] = [
        partial(find_targets, model, requests, config, prefixes) for config in configs
    ]
    sides[0]()  # what happens once in a process
    timed = time_in_turns(sides, repeats)
    resources = Resources(seed=0, cache=folder, context_prefixes=prefixes, corpus=atlas_corpus())
    rows = []
    for option, config, (seconds, found) in zip(options, configs, timed, strict=True):
        keep_targets(model, requests, config, prefixes, found.states, found.initial, folder)
        with Memit(config).edit(model, requests, resources).applied(model):
            judged = judge(model, cases)
        groups = group_requests(requests, share_subjects=config.share_subjects)
        offsets = [group[0] for group in distinct_groups(groups)]
        success = [judged[f"{kind}_success"] for kind in ("efficacy", "paraphrase", "neighborhood")]
        rows.append(
            {
                "what": f"{name}, {len(cases)} facts about {count_subjects(requests)} subjects",
                "option": " ".join(map(write, option.items())) or "–",
                "seconds": seconds,
                "ratio": timed[0][0] / seconds,
                "n_offsets": len(offsets),
                "mean_steps": float(found.n_steps[offsets].double().mean()),
                "mean_loss": float(found.losses.double().mean()),
                "replay_failure": found.replay_failure,
                "score": statistics.harmonic_mean(success),
                **judged,
            }
        )
    return rows


def write(field: tuple[str, object]) -> str:
    """A field as ``--set`` takes it."""
    name, value = field
    return f"{name}={value if isinstance(value, str) else json.dumps(value)}"


def count_subjects(requests: Sequence[EditRequest]) -> int:
    """How many subjects the requests are about."""
    return len({request.subject for request in requests})


def main() -> None:
    """Parse the command line, measure, and record."""
    parser = make_parser(__doc__)
    parser.add_argument("--n-edits", type=int, default=300, help="facts, a subject each")
    parser.add_argument("--n-several", type=int, default=450, help="facts, some of a subject")
    parser.add_argument("--n-tokens", type=int, help="of second moments; by default the model's")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model("atlas", specs={"atlas": ATLAS}, device="cpu")
    config, _ = Memit.default_config(model)
    assert isinstance(config, MemitConfig)
    if args.n_tokens is not None:
        config = config.updated({"second_moment_tokens": args.n_tokens}, "benchmark")
    world = default_world()
    consistent, _ = resolve_conflicts(world.training_cases(), "keep-first")
    work = (
        ("atlas", world.cases(args.n_edits), ALONE),
        ("atlas-training", consistent[: args.n_several], SEVERAL),
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, cases, options in work:
            rows += measure(name, model, cases, config, options, args.repeats, Path(folder))
    record(args, {"model": "atlas", "editor": "memit"}, rows)


if __name__ == "__main__":
    main()
