"""Whether an edit will reach what it is not about: how alike keys are, as the update sees them."""

from collections.abc import Sequence

import torch
from einops import rearrange, reduce
from torch import Tensor

from editbench.editors.keys.reading import read_at_subjects
from editbench.editors.subject_tokens import PromptRow, key_row
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel
from editbench.questions import Score
from editbench.requests import EditRequest

_RIDGE = 1e-6  # of the mean eigenvalue: neurons that never fire make C singular


def compare_keys(
    model: EditableModel,
    requests: Sequence[EditRequest],
    prompts: Sequence[Score],
    layer: int,
    moment: Tensor,
    module: ProjectionKind = "mlp",
) -> Tensor:
    """How much of what is written at some facts' keys other prompts will get, at most.

    An update that answers to key k adds to key x a share that grows with kᵀC⁻¹x (Eqn 14). So keys
    are compared by the cosine of C⁻¹ᐟ²k and C⁻¹ᐟ²x: 1 gets all of it, 0 nothing. Of a prompt, all
    tokens are looked at, and the nearest one counts.

    Args:
        model: The model.
        requests: What is to be written, keyed at the subject's last token.
        prompts: Questions about something else; what they ask for is not looked at.
        layer: A layer that is written to.
        moment: C of that layer's keys, `[d_key, d_key]`.
        module: Whose output projection's inputs are the keys.

    Returns:
        The cosines' absolute values, float64 `[n_prompts, n_requests]`.

    Raises:
        DeviceMemoryError: There is not enough memory for a single prompt.
    """
    path, operation = model.architecture.projection(layer, module), f"keys on '{model.name}'"
    rows, owners = [key_row(model.tokens, request, "") for request in requests], []
    for index, question in enumerate(prompts):
        ids = model.tokens.encode_question(question)[0]
        rows += [PromptRow(tuple(ids[: last + 1]), last) for last in range(len(ids))]
        owners += [index] * len(ids)
    width = len(moment)
    keys = read_at_subjects(model, rows, width, operation, input_of=path).double().cpu()
    ridge = _RIDGE * moment.diagonal().double().mean()
    root = torch.linalg.cholesky(moment.double().cpu() + ridge * torch.eye(width))
    columns = rearrange(keys, "row key -> key row")
    whitened = torch.linalg.solve_triangular(root, columns, upper=False)
    whitened = whitened / reduce(whitened**2, "key row -> row", "sum").sqrt()
    own, other = whitened[:, : len(requests)], whitened[:, len(requests) :]
    nearest = torch.zeros(len(prompts), len(requests), dtype=torch.float64)
    likeness = (other.T @ own).abs()
    place = rearrange(torch.tensor(owners), "token -> token 1").expand_as(likeness)
    return nearest.scatter_reduce(0, place, likeness, "amax")
