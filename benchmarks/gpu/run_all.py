"""All benchmarks for a GPU in one process, in the order of their worth, within some minutes.

    python benchmarks/gpu/run_all.py --minutes 9.5
    python benchmarks/gpu/run_all.py --minutes 9.5 --steps neox profile

A step that by its estimate does not fit into what is left is skipped, and a smaller one after it
may be run. Steps write their records as they go, so that whatever ends the process leaves what was
measured. What fails is said, and the next step is run; the exit status is 1 then.
"""

import argparse
import gc
import importlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch

HERE = Path(__file__).parent
RESULTS = Path("benchmarks/results/gpu")  # commands are given in the root of the checkout


@dataclass(frozen=True)
class Step:
    """A command of its own.

    Attributes:
        name: What it is called here.
        script: The module, in this folder or in the one above.
        minutes: What it takes at most, by estimate, once everything is imported.
        arguments: Of the command; `{out}` is the folder of records.
        tiny: Arguments that are added to try it out on a CPU.
    """

    name: str
    script: str
    minutes: float
    arguments: str
    tiny: str


STEPS = (
    Step(
        "check", "mass_edit", 0.5,
        "--shape tiny --n-edits 20 --n-steps 3",
        "--dtype float32",
    ),
    Step(
        "gptj", "mass_edit", 6.5,
        "--shape gptj --n-edits 10000 --out {out}/gptj.json",
        "--shape tiny --n-edits 5 --n-steps 2 --dtype float32",
    ),
    Step(
        "neox", "mass_edit", 4,
        "--shape neox --n-edits 1000 --out {out}/neox.json",
        "--shape tiny --n-edits 5 --n-steps 2 --dtype float32",
    ),
    Step(
        "profile", "mass_edit", 1.5,
        "--shape gptj --n-edits 700 --n-steps 4 --profile --out {out}/gptj_700.json",
        "--shape tiny --n-edits 5 --n-steps 2 --dtype float32",
    ),
    Step(
        "atlas", "atlas_big", 9,
        "--out runs/atlas-big",
        "--out {out}/atlas-big --tiny --steps 2 --weights 100 --largest 4 --largest-rome 4 "
        "--n-scales 1 --n-validation 4",
    ),
)  # fmt: skip


def main() -> int:
    """Run what fits; return 1 if anything failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [step.name for step in STEPS]
    parser.add_argument("--minutes", type=float, required=True, help="what all may take together")
    parser.add_argument("--steps", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="all steps at a CPU's size")
    args = parser.parse_args()
    chosen = [step for step in STEPS if step.name in args.steps]
    return run_steps(chosen, args.minutes, args.out, args.device, is_tiny=args.tiny)


def run_steps(
    steps: Sequence[Step], minutes: float, out: Path, device: str, *, is_tiny: bool
) -> int:
    """Run the steps that fit; return 1 if any failed."""
    ends = time.monotonic() + 60 * minutes
    failed = []
    for step in steps:
        left = (ends - time.monotonic()) / 60
        if step.minutes > left:
            say(f"{step.name}: skipped, it takes {step.minutes:g} minutes, and {left:.1f} are left")
            continue
        line = step.arguments + (f" {step.tiny}" if is_tiny else "") + f" --device {device}"
        say(f"{step.name}: begins, {left:.1f} minutes are left")
        began = time.monotonic()
        try:
            with command(step.script, line.format(out=out).split()) as run:
                run()
        except (Exception, SystemExit):  # whatever it is, the other steps may do well
            traceback.print_exc()
            failed.append(step.name)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        taken = (time.monotonic() - began) / 60
        outcome = "failed" if step.name in failed else "done"
        say(f"{step.name}: {outcome} after {taken:.1f} minutes; {step.minutes:g} were planned")
    return int(bool(failed))


def say(line: str) -> None:
    """Print with the time."""
    print(f"{time.strftime('%X')} {line}", flush=True)


@contextmanager
def command(script: str, arguments: Sequence[str]) -> Iterator[Callable[[], None]]:
    """The function that a script's command runs, with the command line that its record will say."""
    folders = [str(HERE), str(HERE.parent)]
    with (
        patch.object(sys, "path", [*folders, *sys.path]),
        patch.object(sys, "argv", [f"{script}.py", *arguments]),
    ):
        yield importlib.import_module(script).main


if __name__ == "__main__":
    sys.exit(main())
