"""Benchmark: many facts into a large model of random weights, by MEMIT, stage by stage.

    python benchmarks/gpu/mass_edit.py --shape gptj --n-edits 10000 --out gptj.json
    python benchmarks/gpu/mass_edit.py --shape neox --n-edits 1000 --out neox.json

All of the real editor runs: context prefixes sampled, second moments collected on random text,
target hidden states with every step (no edit stops early), keys, systems solved, the edit built.
Operations are those of the editor's own plan; what the device can do is measured by a product of
large matrices, in the model's dtype and in float64.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measures import StageClock, measure_peak, record
from random_model import SHAPES, make_config, make_corpus, make_model, make_requests

from editbench.costs.stage import Known
from editbench.editors import memit
from editbench.editors.base import Resources
from editbench.editors.memit import Memit

# The editor's stages, as its plan names them, and the functions that do their work.
STAGES = {
    "context prefixes": [(memit, "sample_context_prefixes")],
    "second moments": [(memit, "obtain_second_moments")],
    "target hidden states": [(memit, "optimize_target_hidden")],
    "keys": [(memit.LayerSweep, "__init__"), (memit.LayerSweep, "measure")],
    "solve": [(memit, "solve_layer")],
}


def report(stage: str, done: int, total: int, note: str = "") -> None:
    """Print a line for each tenth of a stage."""
    if total and done * 10 // total != (done - 1) * 10 // total:
        print(f"{time.strftime('%X')} {stage}: {done:,} of {total:,} {note}", flush=True)


@contextmanager
def profiling(device: torch.device) -> Iterator[None]:
    """Print which kernels the optimization of z spends its time on, and how long none runs.

    On a GPU kernels alone are recorded: what starts them is many times as much, and slows it.
    """
    on_gpu = device.type == "cuda"
    activity = (
        torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    )
    optimize = memit.optimize_target_hidden

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

    memit.optimize_target_hidden = optimize_profiled
    try:
        yield
    finally:
        memit.optimize_target_hidden = optimize


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
    clock = StageClock(device)
    with clock.time("making the model"):
        model = make_model(shape, dtype=dtype, device=args.device)
    with clock.time("fingerprint"):
        model.fingerprint  # noqa: B018
    peaks = {dtype: measure_peak(dtype, device), torch.float64: measure_peak(torch.float64, device)}
    config = make_config(shape, n_steps=args.n_steps)
    requests = make_requests(shape, args.n_edits)
    editor = Memit(config)
    resources = Resources(seed=0, corpus=make_corpus(shape), report_progress=report)
    with clock.time("planning"):
        costs = {cost.name: cost for cost in editor.plan(model, requests, resources, Known())}
    profiler = profiling(device) if args.profile else nullcontext()
    with clock.watching(STAGES), clock.time("rest of the edit"), profiler:
        edit = editor.edit(model, requests, resources)
    with TemporaryDirectory() as folder, clock.time("saving the edit"):
        edit.save(Path(folder) / "edit.safetensors")
    rows = []
    for stage, seconds in clock.seconds.items():
        row: dict[str, object] = {"stage": stage, "seconds": seconds}
        if device.type == "cuda":
            row["peak_gib"] = clock.peak_bytes[stage] / 2**30
        if (cost := costs.get(stage)) is not None:
            ideal = cost.n_flops / peaks[dtype] + cost.n_double_flops / peaks[torch.float64]
            row |= {
                "flops": cost.n_flops,
                "double_flops": cost.n_double_flops,
                "utilization": ideal / seconds,
            }
        rows.append(row)
    asked = sum(clock.seconds[stage] for stage in ("target hidden states", "keys", "solve"))
    rows.append({"stage": "z, keys and solve", "seconds": asked})
    settings = {
        "shape": args.shape,
        "n_edits": args.n_edits,
        "n_steps": config.n_steps,
        "critical_layers": list(config.critical_layers),
        "dtype": args.dtype,
        "weights": "random",
        "weight_gib": sum(p.numel() * p.element_size() for p in model.model.parameters()) / 2**30,
        "peak_flops_a_second": peaks[dtype],
        "peak_double_flops_a_second": peaks[torch.float64],
        "mean_steps": edit.card.extra["target_steps"],
        "replay_failure": edit.card.extra["replay_failure"],
    }
    record(args, device, settings, rows)


if __name__ == "__main__":
    main()
