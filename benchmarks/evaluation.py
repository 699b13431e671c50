"""Benchmark: the answers that CounterFact's metrics need, against asking record by record.

    python benchmarks/evaluation.py --out benchmarks/results/evaluation.json

The slow side runs one padded forward for each record, with logits everywhere, as the reference
does; every question of a record is asked, whether or not another record has asked it before.
"""

from pathlib import Path
from typing import Any

import torch
from record_by_record import score_records
from side_by_side import make_parser, record, time_in_turns
from speed_work import DEFAULT_WORK, make_model

from editbench.datasets.counterfact import CounterFact
from editbench.metrics.probes import Success
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.questions import Answer, Question, Score


def measure(model: EditableModel, records: list[list[Score]], repeats: int) -> dict[str, Any]:
    """Run both sides in turns."""

    def ask_together() -> dict[Question, Answer]:
        questions = [question for asked in records for question in asked]
        return answer_questions(model, questions, seed=0, token_budget=model.memory.tokens)

    def ask_by_record() -> list[list[tuple[float, ...]]]:
        return score_records(model, records)

    (slow, plain), (fast, answers) = time_in_turns([ask_by_record, ask_together], repeats)
    pairs = [
        (one, other)
        for asked, found in zip(records, plain, strict=True)
        for question, log_probs in zip(asked, found, strict=True)
        for one, other in zip(answers[question].log_probs, log_probs, strict=True)
    ]
    return {
        "what": f"answers about {len(records)} CounterFact records",
        "slow": slow,
        "fast": fast,
        "ratio": slow / fast,
        "difference": max(abs(one - other) for one, other in pairs),
        "n_questions": sum(map(len, records)),
        "n_distinct": len({question for asked in records for question in asked}),
    }


def main() -> None:
    """Parse the command line, measure, and record."""
    parser = make_parser(__doc__)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument(
        "--counterfact", type=Path, default=Path("../shared/data/counterfact/counterfact-700.json")
    )
    parser.add_argument("--n-records", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = make_model(args.work / "model")
    cases = CounterFact(args.counterfact, Path()).cases()[: args.n_records]
    records = [list(Success().questions(case)) for case in cases]
    settings = {"model": args.work.name, "dtype": "float32", "slow": "a forward for each record"}
    record(args, settings, [measure(model, records, args.repeats)])


if __name__ == "__main__":
    main()
