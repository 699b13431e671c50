"""How probable a model finds the targets, for editors that train weights on it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from editbench.editors.subject_tokens import PromptRow, target_row
from editbench.editors.training.trained_suffix import TrainedSuffix
from editbench.errors import ModelError
from editbench.models.agreement import agree
from editbench.models.editable import EditableModel
from editbench.models.head import select_head_positions
from editbench.replay.offset_forward import OffsetSite
from editbench.requests import EditRequest

Scoring = Literal["teacher-forced", "last-position"]


def training_row(
    model: EditableModel, request: EditRequest, end_id: int | None = None
) -> PromptRow:
    """A fact's prompt and target as tokens, with an end of the text that belongs to the target."""
    row = target_row(model.tokens, request, "")
    if end_id is None:
        return row
    token_ids = (*row.token_ids, row.target_ids[-1])
    return replace(row, token_ids=token_ids, target_ids=(*row.target_ids, end_id))


class TargetBatch:
    """Some facts that run together, and the negative log-likelihood of their targets.

    Args:
        model: The model; its weights may change between calls.
        requests: The facts.
        scoring: ``teacher-forced`` gives the model the target's earlier tokens and scores each
            where it belongs; ``last-position`` gives it the prompt alone and scores all of the
            target's tokens by the distribution behind it, as if in a bag, as the reference does.
            For a target of one token they are the same.
        end_id: An end-of-sequence token that belongs to every target; None for none. It needs
            ``teacher-forced``.
    """

    def __init__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        scoring: Scoring,
        end_id: int | None = None,
    ) -> None:
        self._model = model
        self._requests = requests
        self._scoring: Scoring = scoring
        self._end_id = end_id
        sequences: list[tuple[int, ...]] = []
        edits: list[int] = []
        positions: list[int] = []
        target_ids: list[int] = []
        weights: list[float] = []
        for edit, request in enumerate(requests):
            row = training_row(model, request, end_id)
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
        self._suffix: TrainedSuffix | None = None

    def __len__(self) -> int:
        return len(self._requests)

    def loss(self) -> Tensor:
        """Mean over facts of the mean over the target's tokens of −log p, differentiable."""
        logits = self._whole_logits() if self._suffix is None else self._suffix.logits()
        losses = functional.cross_entropy(logits.float(), self._target_ids, reduction="none")
        return (losses * self._weights).sum()

    def part(self, places: Sequence[int]) -> "TargetBatch":
        """Some of the facts by themselves; they keep states if all together do."""
        requests = [self._requests[place] for place in places]
        part = TargetBatch(self._model, requests, self._scoring, self._end_id)
        if self._suffix is not None:
            part._suffix = part._record(self._suffix.layer, self._suffix.projection_adds)
        return part

    def keep_states(self, layer: int, *, projection_adds: bool, verify: bool) -> int:
        """Expect only weights of block `layer` to change from now on; run what is before it once.

        Args:
            layer: The block.
            projection_adds: See `TrainedSuffix`.
            verify: Compare with a whole forward.

        Returns:
            How many bytes are kept: zero if the two differ, and then nothing is.
        """
        suffix = self._record(layer, projection_adds)
        if verify:
            with torch.no_grad():
                expected = self._whole_logits().float()
                try:
                    found = suffix.logits().float()
                except ModelError:
                    return 0
            if not agree(found, expected, self._model.model.dtype):
                return 0
        self._suffix = suffix
        return suffix.n_bytes

    def _record(self, layer: int, projection_adds: bool) -> TrainedSuffix:
        return TrainedSuffix(
            self._model,
            self._inputs,
            self._edits,
            self._positions,
            layer=layer,
            projection_adds=projection_adds,
        )

    def _whole_logits(self) -> Tensor:
        with select_head_positions(self._model, self._edits, self._positions):
            logits: Tensor = self._model.model(**self._inputs).logits[0]
        return logits


class KeepsStates(Protocol):
    """A batch, or what is made of one."""

    def keep_states(self, layer: int, *, projection_adds: bool, verify: bool) -> int:
        """See `TargetBatch.keep_states`."""


def keep_states(
    model: EditableModel,
    batches: Sequence[KeepsStates],
    request: EditRequest,
    layer: int,
    *,
    only_projection: bool,
) -> None:
    """Run once what training one block leaves as it is; losses stay the same.

    As many batches keep their states as a bound on memory allows; the others, and all of them
    where an architecture does not allow it, run whole forwards.

    Args:
        model: The model, not trained yet.
        batches: The batches; from now on no weights but the block's may change.
        request: One of the facts, to try things out on.
        layer: The block.
        only_projection: Only its MLP's output projection is trained.
    """
    site = OffsetSite.mlp_output(model, layer)
    tokens = target_row(model.tokens, request, "").token_ids
    projection_adds = only_projection and site.outermost_equivalent(model, tokens).leaves_block
    n_kept = 0
    for batch in batches:
        verify = n_kept == 0
        n_bytes = batch.keep_states(layer, projection_adds=projection_adds, verify=verify)
        n_kept += n_bytes
        if n_bytes == 0 or n_kept > model.memory.kept_bytes:
            break
