"""Benchmark: what plans say of time and memory, against what the work takes.

    python benchmarks/plans.py --out benchmarks/results/plans/atlas.json

Atlas is edited and asked by itself; with `--model`, another one, whose facts are CounterFact's. A
stage's memory is what the process has at its worst moment, less what it had before without the
model's weights: no plan speaks of Python and its libraries. ``time`` and ``memory`` are what was
planned over what was measured. Seconds are those of the main thread itself, which waits for the
others at work: so other programs on a busy machine do not count. Caches are empty, and prefixes
sampled. Linux only.
"""

import argparse
import ctypes
import gc
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from side_by_side import make_parser, record

from editbench.costs.answers import estimate_answers
from editbench.costs.plan import Plan, Work
from editbench.costs.stage import ExpectedCache
from editbench.datasets.base import Dataset
from editbench.editors.base import Resources
from editbench.metrics.base import Metric
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.models.loading import load_model
from editbench.plugins.manager import load_plugins
from editbench.plugins.sources import open_corpus, open_dataset
from editbench.questions import Generate, Question
from editbench.testing import tiny_model, toy_cases, toy_corpus

PARTS = {"keys": "insertion", "solve": "insertion", "answers: texts": "texts"}
"""What is planned apart and done together, or called otherwise while it is done."""


def read_memory(what: str) -> int:
    """Bytes of main memory: those the process has (``VmRSS``), or has had at most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def forget_peak() -> None:
    """Give back what is free, and let the peak be what there is now."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def load_libraries() -> None:
    """Do a little of everything once."""
    model = tiny_model()
    requests = [case.request for case in toy_cases(2)]
    resources = Resources(seed=0, corpus=toy_corpus())
    for name in ("memit", "ft-w"):
        editor_type = load_plugins().get_editor(name)
        editor_type(editor_type.default_config(model)[0]).edit(model, requests, resources)
    questions = [Generate(request.text, 30) for request in requests]
    answer_questions(model, questions, seed=0, token_budget=100)


@dataclass
class Watch:
    """Seconds and peak memory of stages; told of progress, like a display.

    Attributes:
        n_bytes_before: What the process had before.
        seconds: By stage.
        peaks: Bytes by stage, at most.
    """

    n_bytes_before: int
    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    _stage: str = "prefixes"
    _since: float = 0.0

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Hear that a stage has come so far: what was before it is over."""
        if stage != self._stage:
            self.begin(stage)

    def begin(self, stage: str) -> None:
        """End one stage, and begin another."""
        now = time.thread_time()
        if self._since:
            before = self.seconds.get(self._stage, 0.0)
            self.seconds[self._stage] = before + now - self._since
            peak = read_memory("VmHWM") - self.n_bytes_before
            self.peaks[self._stage] = max(peak, self.peaks.get(self._stage, 0))
        forget_peak()
        self._stage, self._since = stage, time.thread_time()


def gather_questions(dataset: Dataset, n_edits: int) -> list[Question]:
    """What the dataset's own metrics ask about its first cases."""
    plugins = load_plugins()
    metrics = [plugins.get_metric(name)() for name in dataset.default_metrics]
    cases = dataset.cases()
    fitted = [metric.fitted(cases) for metric in metrics if isinstance(metric, Metric)]
    asked = [
        question for each in fitted for case in cases[:n_edits] for question in each.questions(case)
    ]
    return list(dict.fromkeys(asked))


def measure(
    model: EditableModel,
    dataset: Dataset,
    names: Sequence[str],
    args: argparse.Namespace,
    before: int,
    cache: str,
) -> list[dict[str, Any]]:
    """Plan the edit and the questions, do them, and compare stage by stage."""
    cases = dataset.cases()[: args.n_edits]
    requests = [case.request for case in cases]
    corpus = open_corpus(args.corpus)
    questions = gather_questions(dataset, args.n_edits)
    texts = [each for each in questions if isinstance(each, Generate)]
    scores = [each for each in questions if not isinstance(each, Generate)]
    rows = []
    for name in names:
        watch = Watch(before)
        folder = Path(tempfile.mkdtemp(dir=cache))
        resources = Resources(seed=0, cache=folder, corpus=corpus, report_progress=watch)
        if name == "questions":
            stages = estimate_answers(model, questions)
        else:
            editor_type = load_plugins().get_editor(name)
            editor = editor_type(editor_type.default_config(model)[0])
            stages = editor.estimate(model, requests, resources, ExpectedCache())
        plan = Plan.of([Work(name, model, tuple(stages))])
        if name == "questions":
            for stage, some in (("answers: scores", scores), ("texts", texts)):
                watch.begin(stage)
                answer_questions(model, some, seed=0, token_budget=model.memory.tokens)
        else:
            watch.begin("prefixes")
            editor.edit(model, requests, resources)
        watch.begin("")
        weights = model.memory.weight_bytes[model.device]
        for stage in watch.seconds:
            planned = [each for each in stages if PARTS.get(each.name, each.name) == stage]
            if stage == "edits":
                planned = [each for each in stages if each.name != "second moments"]
            if not planned:
                continue
            seconds = plan.seconds(plan.work[0], planned) or 0.0
            n_bytes = weights + max(each.n_peak_bytes for each in planned)
            rows.append(
                {
                    "what": f"{name}: {stage}",
                    "planned": seconds,
                    "measured": watch.seconds[stage],
                    "time": seconds / watch.seconds[stage],
                    "planned_mib": n_bytes / 2**20,
                    "measured_mib": watch.peaks[stage] / 2**20,
                    "memory": n_bytes / watch.peaks[stage],
                }
            )
            print(rows[-1], flush=True)
    return [*rows, sum_up(rows)]


def sum_up(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Time and peak of everything together, which is what a plan's last line says."""
    total: dict[str, Any] = {"what": "all of it"}
    for what in ("planned", "measured"):
        total[what] = sum(row[what] for row in rows)
        total[f"{what}_mib"] = max(row[f"{what}_mib"] for row in rows)
    total["time"] = total["planned"] / total["measured"]
    total["memory"] = total["planned_mib"] / total["measured_mib"]
    return total


def main() -> None:
    """Parse the command line, measure, and record."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="atlas")
    parser.add_argument("--dataset", default="atlas", help="as for editbench run")
    parser.add_argument("--corpus", default="atlas", help="as for editbench run")
    parser.add_argument("--n-edits", type=int, default=100)
    what = ["memit", "rome", "ft-w", "questions"]
    parser.add_argument("--what", nargs="+", default=what, help="editors, and questions")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dataset = open_dataset(args.dataset, load_plugins(), None)
    load_libraries()
    model = load_model(args.model, specs=load_plugins().models(), device="cpu")
    answer_questions(model, [Generate("The", 5)], seed=0, token_budget=100)
    forget_peak()
    before = read_memory("VmRSS") - model.memory.weight_bytes[model.device]
    with tempfile.TemporaryDirectory() as cache:
        rows = measure(model, dataset, args.what, args, before, cache)
    record(args, {"model": args.model, "n_edits": args.n_edits}, rows)


if __name__ == "__main__":
    main()
