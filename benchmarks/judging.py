"""How good a model is at what cases ask of it."""

import statistics
from collections.abc import Sequence

from editbench.metrics.probes import Accuracy, Success
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.requests import EditCase


def judge(model: EditableModel, cases: Sequence[EditCase]) -> dict[str, float]:
    """Success and accuracy of a model as it stands, each the mean over cases, in percent."""
    metrics = (Success(), Accuracy())
    questions = [each for case in cases for metric in metrics for each in metric.questions(case)]
    answers = answer_questions(model, questions, seed=0, token_budget=model.memory.tokens)
    values: dict[str, list[float]] = {}
    for case in cases:
        for metric in metrics:
            for name, value in metric.values(case, answers).items():
                values.setdefault(name, []).append(value)
    return {name: statistics.fmean(found) for name, found in values.items()}
