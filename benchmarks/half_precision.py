"""Benchmark: what a model in half precision does to z, and to the edit that is made from it.

    python benchmarks/half_precision.py --threads 1 --out benchmarks/results/half_precision.json

Two models in bfloat16 and float16 find z of the same facts after the same context prefixes as in
float32: the embedded one, whose whole edit is then put on it and judged, and one with random
weights, which knows nothing that would take a wrong offset for a right one. Distances are those of
an edit's offset δ = z − h, or of z, to the float32 ones, relative to these. An edit that takes a
step more or less than in float32 ends elsewhere; how good offsets are can be told from their loss
in the float32 model. The embedded model's weights are stored in float16, which therefore rounds
none of them. Nothing is timed: few processors multiply in float16 other than slowly.
"""

import copy
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from judging import judge
from side_by_side import make_parser, record
from speed_work import DEFAULT_WORK, SpeedWork
from targets import find_targets
from torch.nn import functional

from editbench.atlas import default_world
from editbench.editors.base import Resources
from editbench.editors.context_prefixes import ContextPrefixes, sample_context_prefixes
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.targets.batches import chunk_tasks
from editbench.editors.targets.optimizer import TargetOptimizer
from editbench.editors.targets.target_hidden import TargetHidden
from editbench.editors.targets.tasks import make_tasks
from editbench.models.editable import EditableModel
from editbench.models.loading import load_model
from editbench.plugins.atlas import ATLAS, atlas_corpus
from editbench.replay.offset_forward import OffsetSite
from editbench.requests import EditCase, EditRequest

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def in_dtype(model: EditableModel, dtype: torch.dtype) -> EditableModel:
    """A copy of a model with its weights in another dtype."""
    network: Any = copy.deepcopy(model.model)
    return EditableModel(network.to(dtype), model.tokens, name=model.name, spec=model.spec)


def measure_losses(
    model: EditableModel,
    requests: Sequence[EditRequest],
    config: MemitConfig,
    prefixes: ContextPrefixes,
    found: TargetHidden,
) -> list[float]:
    """The losses that offsets found by another model have in this one, in no certain order."""
    layer = config.critical_layers[-1]
    once = config.updated({"n_steps": 1}, "benchmark")
    optimizer = TargetOptimizer(model, OffsetSite.block_output(model, layer), once, replay=True)
    losses = []
    for chunk in chunk_tasks(model, make_tasks(model.tokens, requests, prefixes.flat), layer):
        places = [task.index for task in chunk.rows]
        offsets = (found.states - found.initial)[places]
        outcomes = optimizer.run(
            chunk.rows,
            lambda step, n_finished, loss: None,
            initial=found.initial[places],
            start=offsets,
        )
        losses += [outcome.loss for outcome in outcomes]
    return losses


def compare(found: TargetHidden, expected: TargetHidden) -> dict[str, Any]:
    """Distances of offsets and of z to those in float32; of edits that are finite numbers."""
    finite = found.states.isfinite().all(dim=1) & found.losses.isfinite()
    row: dict[str, Any] = {"n_overflowed": int((~finite).sum())}
    if not finite.any():
        return row
    states, expected_states = found.states[finite].double(), expected.states[finite].double()
    offsets = states - found.initial[finite].double()
    expected_offsets = expected_states - expected.initial[finite].double()
    cosines = functional.cosine_similarity(offsets, expected_offsets)
    same_steps = found.n_steps[finite] == expected.n_steps[finite]
    for name, one, other in (
        ("offset", offsets, expected_offsets),
        ("state", states, expected_states),
    ):
        distances = (one - other).norm(dim=1) / other.norm(dim=1)
        row[f"{name}_median"] = statistics.median(distances.tolist())
        row[f"{name}_worst"] = float(distances.max())
        row[f"{name}_share_beyond_5_percent"] = float((distances > 0.05).double().mean())
    return {
        **row,
        "cosine_median": statistics.median(cosines.tolist()),
        "cosine_least": float(cosines.min()),
        "share_same_steps": float(same_steps.double().mean()),
        "mean_steps": float(found.n_steps[finite].double().mean()),
        "mean_loss": float(found.losses[finite].double().mean()),
    }


def measure(
    model: EditableModel,
    requests: Sequence[EditRequest],
    config: MemitConfig,
    prefixes: ContextPrefixes,
    cases: Sequence[EditCase] = (),
) -> list[dict[str, Any]]:
    """One row for each dtype; with `cases` the requests' whole edit is made and judged as well."""
    rows: list[dict[str, Any]] = []
    expected: TargetHidden | None = None
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        row: dict[str, Any] = {"what": f"z, {model.name}, n = {len(requests)}", "dtype": name}
        rows.append(row)
        half = in_dtype(model, dtype)
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = find_targets(half, requests, config, prefixes, Path(folder))
            except RuntimeError as error:  # an operation that the device lacks in this dtype
                row["failure"] = str(error)
                continue
            expected = found if expected is None else expected
            row.update(compare(found, expected))
            row["replay_failure"] = found.replay_failure
            if row["n_overflowed"]:  # there is no edit to be made from that
                continue
            losses = measure_losses(model, requests, config, prefixes, found)
            row["mean_loss_in_float32"] = statistics.fmean(losses)
            if not cases:
                continue
            resources = Resources(
                seed=0, cache=Path(folder), context_prefixes=prefixes, corpus=atlas_corpus()
            )
            with Memit(config).edit(half, requests, resources).applied(half):
                row.update(judge(half, cases))
    return rows


def main() -> None:
    """Parse the command line, measure, and record."""
    parser = make_parser(__doc__)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument("--n-edits", type=int, default=100, help="of the embedded model")
    parser.add_argument("--n-tokens", type=int, help="of its second moments; by default its own")
    parser.add_argument("--n-random", type=int, default=8, help="of the model in --work; 0: none")
    parser.add_argument("--n-steps", type=int, help="of z in that model; by default its own")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    atlas = load_model("atlas", specs={"atlas": ATLAS}, device="cpu")
    config, _ = Memit.default_config(atlas)
    assert isinstance(config, MemitConfig)
    if args.n_tokens is not None:
        config = config.updated({"second_moment_tokens": args.n_tokens}, "benchmark")
    prefixes = sample_context_prefixes(
        atlas, n_prefixes=config.n_context_prefixes, lengths=(config.context_prefix_length,), seed=0
    )
    cases = default_world().cases(args.n_edits)
    rows = measure(atlas, [case.request for case in cases], config, prefixes, cases)
    if args.n_random:
        work = SpeedWork.read(args.work)
        requests = work.more_requests(args.n_random)
        config = work.config
        if args.n_steps is not None:
            config = config.updated({"n_steps": args.n_steps}, "benchmark")
        rows += measure(work.model, requests, config, work.prefixes)
    record(args, {"model": ["atlas", args.work.name], "reference": "float32"}, rows)


if __name__ == "__main__":
    main()
