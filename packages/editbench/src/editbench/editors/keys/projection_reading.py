"""What goes into an MLP's output projection at a subject, and what comes out: key and value."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editbench.editors.keys.subject_reading import read_at_subjects
from editbench.editors.subject_tokens import key_row
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest


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
    return next(read_projections(model, [request], prefixes, layer))


def read_projections(
    model: EditableModel, requests: Sequence[EditRequest], prefixes: Sequence[str], layer: int
) -> Iterator[ProjectionReading]:
    """Read one fact after another, each as `read_projection` does at the time it is asked for.

    Between two facts nothing may change but the weight of the projection itself. Keys do not depend
    on it, so those of facts to come are read many at a time; values are what it makes of them.

    Raises:
        DeviceMemoryError: There is not enough memory for a single row.
    """
    projection = model.model.get_submodule(model.architecture.projection(layer, "mlp"))
    dtype = projection.get_parameter("weight").dtype
    rows = [key_row(model.tokens, requests[0], prefix) for prefix in prefixes] if requests else []
    longest = max((len(row.token_ids) for row in rows), default=1)
    n_ahead = max(1, model.token_budget // max(1, len(rows) * longest))
    for start in range(0, len(requests), n_ahead):
        some = requests[start : start + n_ahead]
        for keys in _read_keys(model, some, prefixes, layer).split(len(prefixes)):
            with torch.no_grad():
                values = projection(keys.to(dtype)).to(keys)
            yield ProjectionReading(keys, values)


def _read_keys(
    model: EditableModel, requests: Sequence[EditRequest], prefixes: Sequence[str], layer: int
) -> Tensor:
    """Keys of all prefixes of the first fact, then of the next, float32 `[n_rows, d_key]`."""
    rows = [key_row(model.tokens, request, prefix) for request in requests for prefix in prefixes]
    path, width = model.architecture.projection(layer, "mlp"), model.d_key(layer)
    return read_at_subjects(model, rows, width, f"keys on '{model.name}'", input_of=path)
