"""The edit file: one safetensors that holds an edit's updates and its card.

Per parameter ``<parameter>.left`` ``[d_out, rank]`` and ``<parameter>.right`` ``[d_in, rank]`` with
Δ = left rightᵀ, or ``<parameter>.dense`` in the orientation ``[d_out, d_in]``; of a bias or a
norm's weight, ``<parameter>.dense`` has its own shape. The card is JSON in the file's metadata,
under the key ``editbench``. So is what the edit was made from, an `EditRecipe`, where it is known;
its target states are tensors of their own.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from editbench.edits.card import EditCard
from editbench.edits.recipe import TENSORS, EditRecipe
from editbench.errors import EditError, RequestError
from editbench.files.tensor_files import DAMAGED, DamagedError, TensorFile, write_tensors
from memit_core import UpdateFactors

_RECIPE = "recipe"

Update = UpdateFactors | Tensor


def write_edit_file(
    path: Path, updates: Mapping[str, Update], card: EditCard, recipe: EditRecipe | None = None
) -> None:
    """Write an edit file, whole or not at all; an existing file is replaced.

    Raises:
        EditError: The file cannot be written.
    """
    tensors = {}
    for parameter, update in updates.items():
        if isinstance(update, UpdateFactors):
            tensors[f"{parameter}.left"] = update.left
            tensors[f"{parameter}.right"] = update.right
        else:
            tensors[f"{parameter}.dense"] = update
    content = json.loads(card.model_dump_json())
    if recipe is not None:
        content[_RECIPE], targets = recipe.encode()
        tensors |= targets
    try:
        write_tensors(path, tensors, content)
    except OSError as error:
        raise EditError(
            f"save edit: cannot write the file, got {str(path)!r} ({error}). "
            "Choose a folder that exists, is writable and has space left."
        ) from error


def read_edit_file(path: Path) -> tuple[dict[str, Update], EditCard, EditRecipe | None]:
    """Read an edit file and check that it is one.

    Returns:
        Parameter name to update, on the CPU in the file's own precision; the card; and what the
        edit was made from, where the file says so.

    Raises:
        EditError: The file is missing, truncated, not an edit file, or holds updates that are
            incomplete, misshapen or not finite, or is not what was written.
    """
    try:
        file = TensorFile(path)
        tensors = file.read_all()
    except DamagedError as error:
        raise EditError(f"load edit: {str(path)!r}: {error}. {DAMAGED}") from error
    except (OSError, ValueError) as error:
        raise EditError(
            f"load edit: cannot read the file, got {str(path)!r} ({error}); expected a safetensors "
            "file. Check the path, and write the edit again if the file is damaged."
        ) from error
    targets = {name: tensors.pop(name) for name in TENSORS if name in tensors}
    updates, card = _assemble_updates(path, tensors), _parse_card(path, file.card)
    content = (file.card or {}).get(_RECIPE)
    try:
        recipe = None if content is None else EditRecipe.decode(content, targets)
    except (ValueError, RequestError) as error:
        raise EditError(
            f"load edit: what {str(path)!r} says of its making is malformed: {error}. Write the "
            "edit again."
        ) from error
    return updates, card, recipe


def _parse_card(path: Path, card: Mapping[str, Any] | None) -> EditCard:
    if card is None:
        raise EditError(
            f"load edit: the file is no edit file, got {str(path)!r} without a card in its "
            "metadata. Give a file that 'editbench edit' wrote."
        )
    try:
        return EditCard.model_validate(card)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "JSON"
        raise EditError(
            f"load edit: the card in {str(path)!r} is malformed: field '{place}': {first['msg']}. "
            "Write the edit again."
        ) from error


def _assemble_updates(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Update]:
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        parameter, _, part = name.rpartition(".")
        if not parameter or part not in {"left", "right", "dense"}:
            raise EditError(
                f"load edit: unknown tensor in {str(path)!r}, got '{name}'; expected "
                "'<parameter>.left', '<parameter>.right' or '<parameter>.dense'."
            )
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise EditError(
                f"load edit: tensor '{name}' in {str(path)!r} must hold finite floating-point "
                f"numbers, got {tensor.dtype} with NaN, infinity or integers. "
                "Compute the edit again."
            )
        parts[parameter][part] = tensor
    return {parameter: _join_parts(path, parameter, found) for parameter, found in parts.items()}


def _join_parts(path: Path, parameter: str, parts: Mapping[str, Tensor]) -> Update:
    if parts.keys() == {"dense"}:
        return parts["dense"]
    if parts.keys() != {"left", "right"}:
        raise EditError(
            f"load edit: the update of '{parameter}' in {str(path)!r} is incomplete or ambiguous, "
            f"got {', '.join(sorted(parts))}; expected left and right, or dense alone."
        )
    left, right = parts["left"], parts["right"]
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise EditError(
            f"load edit: the factors of '{parameter}' in {str(path)!r} do not fit each other, got "
            f"left {list(left.shape)} and right {list(right.shape)}; expected [d_out, rank] and "
            "[d_in, rank]."
        )
    # UpdateFactors wants one dtype; float64 holds every other exactly.
    dtype = left.dtype if left.dtype == right.dtype else torch.float64
    return UpdateFactors(left.to(dtype), right.to(dtype))
