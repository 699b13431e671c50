"""The usual way to evaluate: one padded forward for each record, logits everywhere."""

from collections.abc import Sequence

import torch

from editbench.models.editable import EditableModel
from editbench.questions import Score


def score_records(
    model: EditableModel, records: Sequence[Sequence[Score]]
) -> list[list[tuple[float, ...]]]:
    """Return, for each question of each record, log p of the continuation's tokens."""
    return [_score_record(model, questions) for questions in records]


def _score_record(model: EditableModel, questions: Sequence[Score]) -> list[tuple[float, ...]]:
    encoded = [model.tokens.encode_question(question) for question in questions]
    rows = model.batch([[*prompt, *continuation] for prompt, continuation in encoded])
    with torch.no_grad():
        log_probs = model.model(**rows, use_cache=False).logits.log_softmax(dim=-1)
    return [
        tuple(
            float(log_probs[row, len(prompt) - 1 + place, token])
            for place, token in enumerate(continuation)
        )
        for row, (prompt, continuation) in enumerate(encoded)
    ]
