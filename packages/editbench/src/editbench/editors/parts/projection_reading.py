"""What goes into an MLP's output projection at a subject, and what comes out: key and value."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editbench.editors.parts.row_batches import length_sorted_batches
from editbench.editors.parts.subject_tokens import at_subjects, key_row
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest
from memit_core import capture


@dataclass(frozen=True)
class ProjectionReading:
    """Keys and values of some prompts at their subject's last token, row for row.

    Attributes:
        keys: Input of the projection, float32 `[n_rows, d_key]`.
        values: Its output, bias included, float32 `[n_rows, d_model]`.
    """

    keys: Tensor
    values: Tensor


def read_projection(
    model: EditableModel, request: EditRequest, prefixes: Sequence[str], layer: int
) -> ProjectionReading:
    """Read layer `layer`'s keys and values of one fact, one row for each context prefix."""
    rows = [key_row(model.tokens, request, prefix) for prefix in prefixes]
    projection = model.architecture.mlp_projections[layer]
    device = model.device
    keys = torch.empty(len(rows), model.d_key(layer), device=device)
    values = torch.empty(len(rows), model.architecture.d_model, device=device)
    lengths = [len(row.token_ids) for row in rows]
    for batch in length_sorted_batches(lengths, model.token_budget):
        inputs = model.batch([rows[index].token_ids for index in batch])
        with (
            torch.no_grad(),
            capture(
                model.model, inputs_of=[projection], outputs_of=[projection], stop=True
            ) as seen,
        ):
            model.model(**inputs, use_cache=False)
        last = torch.tensor([rows[index].subject_last for index in batch])
        keys[batch] = at_subjects(seen.inputs[projection], last).to(keys)
        values[batch] = at_subjects(seen.outputs[projection], last).to(values)
    return ProjectionReading(keys, values)
