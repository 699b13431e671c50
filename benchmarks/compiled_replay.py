"""Benchmark: whether compiled blocks pay for themselves in the steps of z.

    python benchmarks/compiled_replay.py --out benchmarks/results/compiled_replay.json
    python benchmarks/compiled_replay.py --shape gptj --device cuda --dtype bfloat16

Chunks of edits of different lengths are optimized twice: with the model's blocks as they are, and
with `torch.compile` switched on once a chunk's first step is done. Seconds are those of a step,
forwards and backwards, the median; what compiling took is what the first step with it took more,
for the first chunk and for one of another shape. Inductor's mode `reduce-overhead` records CUDA
graphs as well. `--shape` takes a model of benchmarks/gpu instead of the one in `--work`.
"""

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu import random_model
from side_by_side import make_parser, record
from speed_work import DEFAULT_WORK, SpeedWork
from torch import Tensor, nn

from editbench.editors.context_prefixes import sample_context_prefixes
from editbench.editors.memit import MemitConfig
from editbench.editors.targets.batches import chunk_tasks
from editbench.editors.targets.optimizer import TargetOptimizer
from editbench.editors.targets.tasks import TargetTask, make_tasks
from editbench.models.editable import EditableModel
from editbench.replay.offset_forward import OffsetSite


class CompiledBlocks:
    """Blocks of a model that can be run compiled.

    Args:
        model: The model.
        first: The first of them; they go on to the last.
        options: For `torch.compile`.
    """

    def __init__(self, model: EditableModel, first: int, options: Mapping[str, Any]) -> None:
        layers = range(first, model.architecture.n_layers)
        self._blocks: list[nn.Module] = [
            model.model.get_submodule(model.architecture.block(layer)) for layer in layers
        ]
        self._options = options
        torch._dynamo.reset()
        # Blocks have one code, which is compiled for each of them and of a few shapes; beyond the
        # limit they would run as they are, and nobody would know.
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 4 * len(self._blocks))
        self._compiled: list[Any] = []

    def switch_on(self) -> None:
        """Compile them at their next call, or go on with what was compiled before."""
        if not self._compiled:
            for block in self._blocks:
                block.compile(dynamic=True, **self._options)
            self._compiled = [block._compiled_call_impl for block in self._blocks]
        for block, compiled in zip(self._blocks, self._compiled, strict=True):
            block._compiled_call_impl = compiled

    def switch_off(self) -> None:
        """Run them as they are."""
        for block in self._blocks:
            block._compiled_call_impl = None


def run(
    model: EditableModel,
    config: MemitConfig,
    chunk: Sequence[TargetTask],
    compiled: CompiledBlocks | None,
) -> tuple[list[float], list[Tensor]]:
    """Optimize a chunk.

    Returns:
        Seconds of each step but the first, and z of each edit.
    """
    stamps: list[float] = []

    def on_step(step: int, n_finished: int, loss: float) -> None:
        stamps.append(time.perf_counter())
        if compiled is not None:
            compiled.switch_on()

    site = OffsetSite.block_output(model, config.critical_layers[-1])
    optimizer = TargetOptimizer(model, site, config, replay=True)
    try:
        found = optimizer.run(chunk, on_step)
    finally:
        if compiled is not None:
            compiled.switch_off()
    assert optimizer.replay_failure is None, optimizer.replay_failure
    seconds = [after - before for before, after in itertools.pairwise(stamps)]
    return seconds, [each.state for each in found]


def measure(
    model: EditableModel,
    config: MemitConfig,
    chunks: Sequence[Sequence[TargetTask]],
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """One row for each chunk, in the order in which they are compiled."""
    compiled = CompiledBlocks(model, config.critical_layers[-1] + 1, options)
    rows: list[dict[str, Any]] = []
    for chunk in chunks:
        run(model, config, chunk, None)  # what happens once in a process
        eager, expected = run(model, config, chunk, None)
        width = max(task.suffix_width for task in chunk)
        row: dict[str, Any] = {
            "what": f"{len(chunk)} edits of up to {width} tokens",
            "compiler": " ".join(options.values()),
            "eager_seconds": statistics.median(eager),
        }
        rows.append(row)
        try:
            (first, *rest), found = run(model, config, chunk, compiled)
        except Exception as error:  # whatever compilers raise
            row["failure"] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        step = statistics.median(rest)
        saved = row["eager_seconds"] - step
        row["compiled_seconds"] = step
        row["compiling_seconds"] = first - step
        row["n_steps_to_pay"] = round((first - step) / saved) if saved > 0 else None
        row["difference"] = max(
            float((one - other).norm() / other.norm())
            for one, other in zip(found, expected, strict=True)
        )
    return rows


def main() -> None:
    """Parse the command line, measure, and record."""
    parser = make_parser(__doc__)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument("--shape", choices=random_model.SHAPES, help="instead of --work")
    parser.add_argument("--device", default="cpu", help="for --shape")
    parser.add_argument("--dtype", default="float32", help="for --shape")
    parser.add_argument("--n-edits", type=int, default=64)
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--modes", nargs="*", default=["default"], help="inductor's")
    parser.set_defaults(repeats=15)  # steps; they are short
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    n_steps = args.repeats + 2
    if args.shape:
        shape = random_model.SHAPES[args.shape]
        dtype = getattr(torch, args.dtype)
        model = random_model.make_model(shape, dtype=dtype, device=args.device)
        config = random_model.make_config(shape, n_steps=n_steps)
        requests = random_model.make_requests(shape, args.n_edits)
        prefixes = sample_context_prefixes(
            model, n_prefixes=config.n_context_prefixes, length=config.context_prefix_length, seed=0
        )
    else:
        work = SpeedWork.read(args.work)
        model, prefixes = work.model, work.prefixes
        config = work.config.updated({"n_steps": n_steps, "stop_loss": -1e9}, "benchmark")
        requests = work.more_requests(args.n_edits)
    tasks = make_tasks(model.tokens, requests, prefixes.flat)
    first, *others = chunk_tasks(model, tasks, config.critical_layers[-1])
    chunks = [first, *others[-1:]]
    compilers: list[dict[str, str]] = [{"backend": args.backend}]
    if args.backend == "inductor":
        compilers = [{"backend": args.backend, "mode": mode} for mode in args.modes]
    rows = [row for each in compilers for row in measure(model, config, chunks, each)]
    name = args.shape or args.work.name
    record(args, {"model": name, "device": args.device, "dtype": args.dtype}, rows)


if __name__ == "__main__":
    main()
