"""Benchmark: many facts into a large model of random weights, by MEMIT, stage by stage.

    python benchmarks/gpu/mass_edit.py --shape gptj --out benchmarks/results/gpu/gptj.json
    python benchmarks/gpu/mass_edit.py --shape neox --n-edits 1000 --out RESULT.json

All of the real editor runs: context prefixes sampled, second moments collected on random text,
target hidden states with every step (no edit stops early), keys, systems solved, the edit built.
Operations are those of the editor's own plan; what the device can do is measured by a product of
large matrices, in the model's dtype and in float64. The record is written after each call of a
stage: a run that is ended early leaves what it has measured.
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from growing_record import GrowingRecord
from measures import StageClock, measure_peak
from random_model import SHAPES, make_config, make_corpus, make_model, make_requests

from editbench.costs.stage import ExpectedCache, StageCost
from editbench.editors.base import Resources
from editbench.editors.closed_form import editor as closed_form
from editbench.editors.closed_form import hidden_goals, stream
from editbench.editors.closed_form.solving import PreservedValues
from editbench.editors.keys.layer_sweep import LayerSweep
from editbench.editors.memit import Memit
from editbench.editors.targets.optimizer import TargetOptimizer
from editbench.progress import Progress
from editbench.second_moments.obtaining import LayerMoments

# The editor's stages, as its plan names them, and the functions that do their work.
STAGES = {
    "context prefixes": [(closed_form, "sample_context_prefixes")],
    "second moments": [(stream, "obtain_second_moments")],
    # The whole, and each chunk of edits within it.
    "target hidden states": [(hidden_goals, "optimize_target_hidden"), (TargetOptimizer, "run")],
    "keys": [(LayerSweep, "__init__"), (LayerSweep, "measure")],
    "second moments read": [(LayerMoments, "__getitem__")],
    "solve": [(PreservedValues, "solve")],
}
IN_PARTS = ("keys", "solve")  # called for one layer after the other
ASKED = ("target hidden states", "keys", "second moments read", "solve")


def report_to(record: GrowingRecord) -> Progress:
    """Print a line for each tenth of a stage, and keep the record up to date."""

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        record.show_progress(stage, done, total)
        if total and done * 10 // total != (done - 1) * 10 // total:
            print(f"{time.strftime('%X')} {stage}: {done:,} of {total:,} {note}", flush=True)

    return report


def make_rows(
    clock: StageClock,
    costs: Mapping[str, StageCost],
    peaks: Mapping[torch.dtype, float],
    dtype: torch.dtype,
    *,
    is_complete: bool,
) -> list[dict[str, Any]]:
    """A row for each stage that has been timed: seconds, memory, and how far from the peak.

    The plan is of whole stages, and says nothing about one that has not ended.

    Args:
        clock: What was timed.
        costs: The editor's plan, by stage.
        peaks: Operations a second that the device can do in the model's dtype, and in float64.
        dtype: The model's.
        is_complete: Whether all layers have been written to.
    """
    rows: list[dict[str, Any]] = []
    for stage, calls in clock.calls.items():
        row: dict[str, Any] = {"stage": stage, "seconds": sum(calls), "seconds_of_calls": calls}
        if stage in clock.peak_bytes:
            row["peak_gib"] = clock.peak_bytes[stage] / 2**30
        has_ended = is_complete or not (stage in IN_PARTS or clock.is_running(stage))
        if has_ended and (cost := costs.get(stage)) is not None:
            ideal = cost.n_flops / peaks[dtype] + cost.n_double_flops / peaks[torch.float64]
            row |= {
                "flops": cost.n_flops,
                "double_flops": cost.n_double_flops,
                "utilization": ideal / sum(calls),
            }
        rows.append(row)
    return rows


@contextmanager
def profiling(device: torch.device) -> Iterator[None]:
    """Print which kernels the optimization of z spends its time on, and how long none runs.

    On a GPU kernels alone are recorded: what starts them is many times as much, and slows it.
    """
    on_gpu = device.type == "cuda"
    activity = (
        torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    )
    optimize = hidden_goals.optimize_target_hidden

    def optimize_profiled(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        with torch.profiler.profile(activities=[activity], acc_events=True) as profile:
            found = optimize(*args, **options)
        seconds = time.perf_counter() - began
        kernels = profile.key_averages()
        order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        print(kernels.table(sort_by=order, row_limit=40, max_name_column_width=110))
        busy = sum(getattr(each, order) for each in kernels) / 1e6
        print(f"z: {seconds:.2f} s, of which kernels run {busy:.2f} s", flush=True)
        return found

    hidden_goals.optimize_target_hidden = optimize_profiled
    try:
        yield
    finally:
        hidden_goals.optimize_target_hidden = optimize


def main() -> None:
    """Make the model, edit it, record seconds, utilization and memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="gptj")
    parser.add_argument("--n-edits", type=int, default=10_000)
    parser.add_argument("--n-steps", type=int, help="of the z optimizer; default: as published")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--profile", action="store_true", help="show the kernels of z; few steps")
    parser.add_argument("--out", type=Path, help="where to write the record, a JSON file")
    args = parser.parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    shape = SHAPES[args.shape]
    config = make_config(shape, n_steps=args.n_steps)
    record = GrowingRecord(args.out, device)
    record.settle(
        {
            "shape": args.shape,
            "n_edits": args.n_edits,
            "n_steps": config.n_steps,
            "critical_layers": list(config.critical_layers),
            "dtype": args.dtype,
            "weights": "random",
        }
    )
    costs: dict[str, StageCost] = {}
    peaks: dict[torch.dtype, float] = {}

    def rows(*, is_complete: bool = False) -> list[dict[str, Any]]:
        return make_rows(clock, costs, peaks, dtype, is_complete=is_complete)

    clock = StageClock(device, on_call=lambda: record.show(rows()))
    with clock.time("making the model"):
        model = make_model(shape, dtype=dtype, device=args.device)
    with clock.time("fingerprint"):
        model.fingerprint  # noqa: B018
    peaks[dtype] = measure_peak(dtype, device)
    peaks[torch.float64] = measure_peak(torch.float64, device)
    record.settle(
        {
            "weight_gib": sum(p.numel() * p.element_size() for p in model.model.parameters())
            / 2**30,
            "peak_flops_a_second": peaks[dtype],
            "peak_double_flops_a_second": peaks[torch.float64],
        }
    )
    requests = make_requests(shape, args.n_edits)
    editor = Memit(config)
    resources = Resources(seed=0, corpus=make_corpus(shape), report_progress=report_to(record))
    with clock.time("planning"):
        plan = editor.estimate(model, requests, resources, ExpectedCache())
    costs |= {cost.name: cost for cost in plan}
    profiler = profiling(device) if args.profile else nullcontext()
    with clock.watching(STAGES), clock.time("rest of the edit"), profiler:
        edit = editor.edit(model, requests, resources)
    with TemporaryDirectory() as folder, clock.time("saving the edit"):
        edit.save(Path(folder) / "edit.safetensors")
    record.settle(
        {
            "mean_steps": edit.card.extra["target_steps"],
            "replay_failure": edit.card.extra["replay_failure"],
        }
    )
    asked = sum(clock.seconds[stage] for stage in ASKED if stage in clock.seconds)
    record.finish([*rows(is_complete=True), {"stage": "z, keys and solve", "seconds": asked}])


if __name__ == "__main__":
    main()
