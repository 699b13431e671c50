"""What modules are given or put out at the subjects of many rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from editbench.editors.row_batches import length_sorted_batches
from editbench.editors.subject_tokens import PromptRow, at_subjects
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import Halving
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
    for batch in length_sorted_batches([len(row.token_ids) for row in rows], model.token_budget):
        for some, found in halving.run(batch, run):
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
