"""How probable a model finds the targets, for editors that train weights on it."""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from editbench.editors.parts.subject_tokens import target_row
from editbench.models.editable import EditableModel
from editbench.models.head import select_head_positions
from editbench.requests import EditRequest

Scoring = Literal["teacher-forced", "last-position"]


class TargetBatch:
    """Some facts that run together, and the negative log-likelihood of their targets.

    Args:
        model: The model; its weights may change between calls.
        requests: The facts.
        scoring: ``teacher-forced`` gives the model the target's earlier tokens and scores each
            where it belongs; ``last-position`` gives it the prompt alone and scores all of the
            target's tokens by the distribution behind it, as if in a bag, as the reference does.
            For a target of one token they are the same.
    """

    def __init__(
        self, model: EditableModel, requests: Sequence[EditRequest], scoring: Scoring
    ) -> None:
        self._model = model
        self.n_edits = len(requests)
        sequences: list[tuple[int, ...]] = []
        edits: list[int] = []
        positions: list[int] = []
        target_ids: list[int] = []
        weights: list[float] = []
        for edit, request in enumerate(requests):
            row = target_row(model.tokens, request, "")
            n_targets = len(row.target_ids)
            if scoring == "teacher-forced":
                sequences.append(row.token_ids)
                positions += range(row.target_start, row.target_start + n_targets)
            else:
                sequences.append(row.token_ids[: row.target_start + 1])
                positions += [row.target_start] * n_targets
            edits += [edit] * n_targets
            target_ids += row.target_ids
            weights += [1 / (n_targets * len(requests))] * n_targets
        device = model.device
        self._inputs = {**model.batch(sequences), "use_cache": False}
        self._edits = torch.tensor(edits, device=device)
        self._positions = torch.tensor(positions, device=device)
        self._target_ids = torch.tensor(target_ids, device=device)
        self._weights = torch.tensor(weights, device=device)

    def loss(self) -> Tensor:
        """Mean over facts of the mean over the target's tokens of −log p, differentiable."""
        with select_head_positions(self._model, self._edits, self._positions):
            logits = self._model.model(**self._inputs).logits[0].float()
        losses = functional.cross_entropy(logits, self._target_ids, reduction="none")
        return (losses * self._weights).sum()


def make_target_batches(
    model: EditableModel, requests: Sequence[EditRequest], batch_size: int, scoring: Scoring
) -> Iterator[TargetBatch]:
    """Cut requests, in their order, into batches of `batch_size`; the last may be smaller."""
    for start in range(0, len(requests), batch_size):
        yield TargetBatch(model, requests[start : start + batch_size], scoring)
