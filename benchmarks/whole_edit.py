"""Benchmark: a whole edit and its evaluation, against the usual way of doing both.

    python benchmarks/whole_edit.py --out benchmarks/results/whole_edit.json

The usual way optimizes z one edit at a time, runs two full forwards a layer, solves with
`torch.linalg.solve`, and asks record by record. Its z are timed on some of the edits, and the rest
is taken to last as long.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from one_at_a_time import optimize_one
from record_by_record import score_records
from side_by_side import make_parser, record, time_in_turns
from speed_work import (
    DEFAULT_WORK,
    SpeedWork,
    random_moments,
    write_moments,
)
from torch import Tensor
from two_forwards_a_layer import insert

from editbench.editors.base import Resources
from editbench.editors.memit import Memit
from editbench.edits.edit import Edit
from editbench.models.answering import answer_questions
from editbench.questions import Answers, Score


def measure(
    work: SpeedWork, moments: dict[int, Tensor], args: Any, folder: Path
) -> list[dict[str, Any]]:
    """Run both sides in turns."""
    model, n = work.model, args.n_edits
    requests = work.more_requests(n)
    write_moments(folder / "moments.safetensors", model, moments)
    resources = Resources(
        seed=0, second_moments=folder / "moments.safetensors", context_prefixes=work.prefixes
    )
    # What CounterFact asks about a fact: the prompt, 2 paraphrases, 10 neighbors, 2 targets each.
    records = [
        [
            Score(other.text, target)
            for other in [request, *work.more_requests(2 * n)[n + place : n + place + 12]]
            for target in (request.target, other.target)
        ]
        for place, request in enumerate(requests)
    ]
    some = list(range(0, n, max(1, n // args.n_slow)))[: args.n_slow]

    def optimize_some() -> list[Tensor]:
        return [
            optimize_one(model, requests[index], work.config, work.prefixes.flat) for index in some
        ]

    def insert_slowly() -> dict[int, Tensor]:
        targets = torch.stack(optimized)[[place % len(some) for place in range(n)]]
        return insert(model, requests, work.prefixes, work.config, targets, moments)

    def ask_slowly() -> object:
        return score_records(model, records)

    def edit_fast() -> Edit:
        return Memit(work.config).edit(model, requests, resources)

    def ask_fast() -> Answers:
        questions = dict.fromkeys(question for asked in records for question in asked)
        return answer_questions(model, questions, seed=0, token_budget=model.token_budget)

    optimized = optimize_some()
    timed = time_in_turns(
        [optimize_some, insert_slowly, ask_slowly, edit_fast, ask_fast], args.repeats
    )
    z, inserted, asked_slowly, edited, asked = (seconds for seconds, _ in timed)
    slow = z * n / len(some) + inserted
    return [
        {"what": f"whole edit, n = {n}", "slow": slow, "fast": edited, "ratio": slow / edited},
        {
            "what": f"whole edit and evaluation, n = {n}",
            "slow": slow + asked_slowly,
            "fast": edited + asked,
            "ratio": (slow + asked_slowly) / (edited + asked),
        },
    ]


def main() -> None:
    """Parse the command line, measure, and record."""
    parser = make_parser(__doc__)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument("--n-edits", type=int, default=32)
    parser.add_argument("--n-slow", type=int, default=8, help="edits whose z the slow side finds")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = SpeedWork.read(args.work)
    moments = random_moments(work.model, work.config.critical_layers)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(work, moments, args, Path(folder))
    settings = {"model": args.work.name, "dtype": "float32", "n_timed_slow": args.n_slow}
    record(args, settings, rows)


if __name__ == "__main__":
    main()
