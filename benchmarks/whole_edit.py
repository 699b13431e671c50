"""Benchmark: a whole edit and its evaluation, against the usual way of doing both.

    python benchmarks/whole_edit.py --out benchmarks/results/whole_edit.json

The usual way optimizes z one edit at a time, runs two full forwards a layer, solves with
`torch.linalg.solve`, and asks record by record. Its z are timed on some of the edits, and the rest
is taken to last as long. With 256 edits a turn takes minutes, and there is one.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from one_at_a_time import optimize_one
from record_by_record import score_records
from side_by_side import (
    add_most_repeated,
    choose_repeats,
    make_parser,
    record,
    time_in_turns,
)
from speed_work import (
    DEFAULT_WORK,
    SpeedWork,
    choose_typical,
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
    work: SpeedWork,
    moments: dict[int, Tensor],
    n: int,
    n_slow: int,
    repeats: int,
    folder: Path,
) -> list[dict[str, Any]]:
    """Run both sides in turns for `n` edits, of which the slow side finds z of `n_slow`."""
    model = work.model
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
    some = choose_typical(work, requests, n_slow)
    optimized: list[Tensor] = []

    def optimize_some() -> None:
        optimized[:] = [
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
        return answer_questions(model, questions, seed=0, token_budget=model.memory.tokens)

    timed = time_in_turns([optimize_some, insert_slowly, ask_slowly, edit_fast, ask_fast], repeats)
    z, inserted, asked_slowly, edited, asked = (seconds for seconds, _ in timed)
    slow = z * n / len(some) + inserted
    shared = {"n_timed_slow": len(some), "repeats": repeats}
    return [
        {
            "what": f"whole edit, n = {n}",
            "slow": slow,
            "fast": edited,
            "ratio": slow / edited,
            **shared,
        },
        {
            "what": f"whole edit and evaluation, n = {n}",
            "slow": slow + asked_slowly,
            "fast": edited + asked,
            "ratio": (slow + asked_slowly) / (edited + asked),
            **shared,
        },
    ]


def main() -> None:
    """Parse the command line, measure, and record."""
    parser = make_parser(__doc__)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument("--n-edits", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--n-slow", type=int, default=8, help="edits whose z the slow side finds")
    parser.add_argument("--n-steps", type=int, help="of z; by default those of the work")
    add_most_repeated(parser, 32, "edits")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = SpeedWork.read(args.work).shortened(args.n_steps)
    moments = random_moments(work.model, work.config.critical_layers)
    rows: list[dict[str, Any]] = []
    for n in args.n_edits:
        with tempfile.TemporaryDirectory() as folder:
            repeats = choose_repeats(args, n)
            rows += measure(work, moments, n, args.n_slow, repeats, Path(folder))
    settings = {"model": args.work.name, "dtype": "float32", "slow": "one edit at a time"}
    record(args, settings, rows)


if __name__ == "__main__":
    main()
