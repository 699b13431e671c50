"""What modules are given or put out at the subjects of many rows: keys, values, hidden states."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editbench.editors.subject_tokens import PromptRow, at_subjects, key_row
from editbench.models.batches import batches_of_like_length
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import Halving
from editbench.requests import EditRequest
from memit_core import capture


def read_at_subjects(
    model: EditableModel,
    rows: Sequence[PromptRow],
    width: int,
    operation: str,
    *,
    input_of: str | None = None,
    output_of: str | None = None,
) -> Tensor:
    """Run rows up to a module, and read it at each one's subject's last token.

    Args:
        model: The model.
        rows: The rows.
        width: Of what is read.
        operation: What is being done, for warnings and errors.
        input_of: Path of the module whose input is read; or
        output_of: of that whose output is.

    Returns:
        float32, `[n_rows, width]`, on the model's device.

    Raises:
        DeviceMemoryError: There is not enough memory for a single row.
    """
    inputs_of, outputs_of = ([path] if path else [] for path in (input_of, output_of))
    read = torch.empty(len(rows), width, device=model.device)

    def run(some: Sequence[int]) -> tuple[Sequence[int], Tensor]:
        inputs = model.batch([rows[index].token_ids for index in some])
        with (
            torch.no_grad(),
            capture(model.model, inputs_of=inputs_of, outputs_of=outputs_of, stop=True) as seen,
        ):
            model.model(**inputs, use_cache=False)
        last = torch.tensor([rows[index].subject_last for index in some])
        (states,) = (*seen.inputs.values(), *seen.outputs.values())
        return some, at_subjects(states, last).to(read)

    halving = Halving(operation)
    token_ids = [row.token_ids for row in rows]
    for batch in batches_of_like_length(token_ids, model.memory.tokens):
        for some, found in halving.run(batch.rows, run):
            read[some] = found
    return read


def read_hidden(model: EditableModel, rows: Sequence[PromptRow], layer: int) -> Tensor:
    """Block `layer`'s output at each row's subject's last token, float32 `[n_rows, d_model]`.

    Raises:
        DeviceMemoryError: There is not enough memory for a single row.
    """
    block, width = model.architecture.block(layer), model.architecture.d_model
    operation = f"hidden states on '{model.name}'"
    return read_at_subjects(model, rows, width, operation, output_of=block)


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
    n_ahead = max(1, model.memory.tokens // max(1, len(rows) * longest))
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
