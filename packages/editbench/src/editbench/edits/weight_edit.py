"""Edits that add something to weights."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel
from torch import Tensor

from editbench.edits.card import EditCard, package_versions
from editbench.edits.edit import Edit
from editbench.edits.files import Update, read_edit_file, write_edit_file
from editbench.edits.recipe import EditRecipe
from editbench.errors import EditError, ModelError
from editbench.files.tensor_files import view_bytes
from editbench.models.architecture import weight_is_transposed
from editbench.models.editable import EditableModel
from editbench.models.offload import find_device, in_memory, updated_weights
from editbench.requests import EditRequest
from memit_core import MemitCoreError, UpdateFactors, find_float64_device
from memit_core.weights import add_update


class WeightEdit(Edit):
    """An update for each of some parameters.

    Updates of matrices are kept in the orientation ``[d_out, d_in]``, whatever the module stores: a
    Conv1D gets the transpose. They are kept as low-rank factors where the rank is below both
    dimensions, else dense. Updates of biases and of norms' weights are dense and have their own
    shape. An edit that was saved and loaded gives the model the same bits as the one in memory,
    because both hold the same numbers and both are multiplied out in float64.

    Attributes:
        updates: Parameter name, as in the model's ``named_parameters``, to its update.
    """

    changes_weights_alone: ClassVar[bool] = True

    def __init__(
        self, updates: Mapping[str, Update], card: EditCard, recipe: EditRecipe | None = None
    ) -> None:
        self.updates = dict(updates)
        self.card = card
        self.recipe = recipe

    @classmethod
    def build(
        cls,
        model: EditableModel,
        *,
        editor: str,
        config: BaseModel | Mapping[str, Any],
        requests: Sequence[EditRequest],
        updates: Mapping[str, Update],
        extra: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Make an edit of freshly computed updates, and write its card.

        Args:
            model: The model that the edit is for, as it was when the edit was computed.
            editor: Name of the editor.
            config: The editor's hyperparameters.
            requests: What was written.
            updates: Parameter name to Δ ``[d_out, d_in]``, as factors or dense; of a bias or a
                norm's weight: dense, of its own shape.
            extra: What else the editor reports; plain JSON values. The card adds ``updates``: for
                each parameter its number of weights, the rank of the update (None: dense) and
                its Frobenius norm relative to the weight's, ‖Δ‖/‖W‖.
            dtype: Precision of the stored numbers. Rounding factors to float32 moves Δ by about
                4e-8 relative, as much as rounding Δ itself would, and halves the file.

        Raises:
            EditError: An update is not finite, or fits no parameter of the model.
        """
        stored = {name: _stored(update, dtype) for name, update in updates.items()}
        for name, update in stored.items():
            if not all(bool(part.isfinite().all()) for part in _parts(update)):
                raise EditError(
                    f"{editor}: the update of '{name}' is not finite, got NaN or infinity. Use a "
                    "smaller learning rate, a larger preservation weight, or float32 weights."
                )
        report: dict[str, Any] = {}
        card = EditCard.of(model, editor=editor, config=config, requests=requests)
        edit = cls(stored, card)
        for name, parameter in edit._parameters(model).items():
            update = stored[name]
            with in_memory(model.model, [name]):  # wherever it is kept
                weight = model.model.get_parameter(name).detach().cpu()
            weight_norm = float(weight.double().norm())
            report[name] = {
                "n_weights": parameter.numel(),
                "rank": update.left.shape[1] if isinstance(update, UpdateFactors) else None,
                "relative_norm": frobenius_norm(update) / weight_norm if weight_norm else None,
            }
        edit.card = card.model_copy(update={"extra": {**(extra or {}), "updates": report}})
        return edit

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an edit file.

        Raises:
            EditError: The file is missing, damaged, or no edit file.
        """
        return cls(*read_edit_file(path))

    @classmethod
    def merge(cls, edits: Sequence["WeightEdit"]) -> Self:
        """Join edits of one model into one: the sum of their updates.

        Low-rank factors are concatenated, so that nothing is rounded; where the rank would
        reach a dimension of the weight, the sum becomes dense, in float64.

        An edit that was computed while others were on the model comes after these. The sum is for
        the model that the first one is for.

        Raises:
            EditError: There is nothing to merge, the edits are for different models, or one was
                computed on top of edits that do not come before it.
        """
        if not edits:
            raise EditError("merge edits: there is nothing to merge, got no edit.")
        first = edits[0].card
        for edit in edits[1:]:
            if edit.card.model_fingerprint != first.model_fingerprint:
                raise EditError(
                    "merge edits: the edits are for different models, got "
                    f"'{edit.card.model_name}' with fingerprint {edit.card.model_fingerprint}; "
                    f"expected '{first.model_name}' with fingerprint {first.model_fingerprint}."
                )
        before = first.edits_on
        for edit in edits:
            needed = edit.card.edits_on
            if len(needed) < len(first.edits_on) or needed != before[: len(needed)]:
                raise EditError(
                    "merge edits: an edit was computed with others on the model that do not come "
                    f"before it, got {', '.join(before) or 'none'}; expected "
                    f"{', '.join(needed) or 'none'}. Give the edits in the order of their making."
                )
            if edit.changes_something:
                before += (edit.identity,)
        updates: dict[str, Update] = {}
        for edit in edits:
            for name, update in edit.updates.items():
                updates[name] = (
                    sum_updates(name, updates[name], update) if name in updates else update
                )
        return cls(updates, _merged_card([edit.card for edit in edits]))

    def __add__(self, other: "WeightEdit") -> "WeightEdit":
        if not isinstance(other, WeightEdit):
            return NotImplemented
        return WeightEdit.merge([self, other])

    def __neg__(self) -> "WeightEdit":
        updates: dict[str, Update] = {
            name: UpdateFactors(-update.left, update.right)
            if isinstance(update, UpdateFactors)
            else -update
            for name, update in self.updates.items()
        }
        extra = {**self.card.extra, "negated": not self.card.extra.get("negated", False)}
        return WeightEdit(updates, self.card.model_copy(update={"extra": extra}))

    @property
    def changes_something(self) -> bool:
        """Whether any update is other than zero."""
        return any(frobenius_norm(update) > 0 for update in self.updates.values())

    @property
    def identity(self) -> str:
        """Hash of all updates, number by number."""
        digest = hashlib.blake2b(digest_size=16)
        for name, update in sorted(self.updates.items()):
            for part in _parts(update):
                digest.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
                digest.update(view_bytes(part.cpu()).numpy().data)
        return digest.hexdigest()

    @property
    def n_changed_parameters(self) -> int:
        """Number of single weights that the updates cover."""
        return sum(math.prod(_shape(update)) for update in self.updates.values())

    @contextmanager
    def applied(self, model: EditableModel) -> Iterator[None]:
        """Put the updates on `model` for the length of a ``with`` block.

        Raises:
            EditError: The edit was computed for another model, or an update fits no parameter.
        """
        self.check_fits(model)
        parameters = self._parameters(model)
        with ExitStack() as stack:
            try:
                oriented = {
                    name: orient_for_module(model, name, parameter.data, self.updates[name])
                    for name, parameter in parameters.items()
                }
                stack.enter_context(updated_weights(model.model, oriented))
            except (MemitCoreError, ModelError) as error:
                raise EditError(f"apply edit to '{model.name}': {error}") from error
            yield

    def edited(self, model: EditableModel, name: str, weight: Tensor) -> Tensor:
        """A weight with the update on it, in float64, computed as and where `applied` does.

        Args:
            model: The model that the edit was computed for, unedited.
            name: The parameter's name; one of `updates`.
            weight: The parameter, as its module stores it, in any precision.

        Raises:
            EditError: An update fits no parameter of the model.
        """
        update = orient_for_module(
            model, name, self._parameters(model)[name].data, self.updates[name]
        )
        place = update.left.device if isinstance(update, UpdateFactors) else update.device
        return add_update(weight.to(place), update)

    def save(self, path: Path) -> None:
        """Write the edit to one safetensors file, whole or not at all.

        Raises:
            EditError: The file cannot be written.
        """
        write_edit_file(path, self.updates, self.card, self.recipe)

    def _parameters(self, model: EditableModel) -> dict[str, Tensor]:
        """The model's parameters that the updates are for, after checking that they fit."""
        parameters = dict(model.model.named_parameters(remove_duplicate=False))
        for name, update in self.updates.items():
            if name not in parameters:
                raise EditError(
                    f"apply edit: '{model.name}' has no parameter of that name, got '{name}'. "
                    "Load the model that the edit was computed for."
                )
            shape = parameters[name].shape
            expected = shape[::-1] if _is_transposed(model, name) else shape
            if _shape(update) != tuple(expected):
                raise EditError(
                    f"apply edit: the update of '{name}' does not fit '{model.name}', got shape "
                    f"{list(_shape(update))}; expected {list(expected)} ([d_out, d_in])."
                )
        return {name: parameters[name] for name in self.updates}


def _is_transposed(model: EditableModel, parameter: str) -> bool:
    """Whether a parameter is a matrix that its module stores as ``[d_in, d_out]``."""
    module_path, _, name = parameter.rpartition(".")
    if name != "weight" or model.model.get_parameter(parameter).ndim != 2:  # a bias, or a norm's
        return False
    return weight_is_transposed(model.model.get_submodule(module_path))


def orient_for_module(model: EditableModel, name: str, parameter: Tensor, update: Update) -> Update:
    """The update as the module stores its weight: there, in float64, transposed for a Conv1D.

    Always a copy: results of a matrix product can depend on how its operands are aligned in
    memory, and numbers from a file lie elsewhere than freshly computed ones.
    """
    device = find_device(model.model, name) if parameter.is_meta else parameter.device
    device = find_float64_device(device)
    parts = [part.to(device, torch.float64, copy=True) for part in _parts(update)]
    transposed = _is_transposed(model, name)
    if len(parts) == 1:
        return parts[0].T if transposed else parts[0]
    left, right = parts
    return UpdateFactors(right, left) if transposed else UpdateFactors(left, right)


def orient_for_edit(model: EditableModel, name: str, change: Tensor) -> Tensor:
    """The change of a parameter, given as its module stores it, in the orientation of an edit."""
    return change.T if _is_transposed(model, name) else change


def _stored(update: Update, dtype: torch.dtype) -> Update:
    """A private copy on the CPU: factors where the rank is below both dimensions, else dense."""

    def own(part: Tensor) -> Tensor:
        return part.detach().to("cpu", dtype, copy=True).contiguous()

    if isinstance(update, Tensor):
        return own(update)
    if update.left.shape[1] >= min(_shape(update)):
        return own(make_dense(update))
    return UpdateFactors(own(update.left), own(update.right))


def sum_updates(name: str, first: Update, second: Update) -> Update:
    """The sum of two updates of one parameter: factors side by side, or dense in float64.

    Raises:
        EditError: Their shapes differ.
    """
    if _shape(first) != _shape(second):
        raise EditError(
            f"merge edits: the updates of '{name}' differ in shape, got {list(_shape(second))}; "
            f"expected {list(_shape(first))}."
        )
    if isinstance(first, UpdateFactors) and isinstance(second, UpdateFactors):
        rank = first.left.shape[1] + second.left.shape[1]
        if rank < min(_shape(first)):
            dtype = torch.promote_types(first.left.dtype, second.left.dtype)
            return UpdateFactors(
                torch.cat([first.left.to(dtype), second.left.to(dtype)], dim=1),
                torch.cat([first.right.to(dtype), second.right.to(dtype)], dim=1),
            )
    return make_dense(first) + make_dense(second)


def _merged_card(cards: Sequence[EditCard]) -> EditCard:
    first = cards[0]
    if len(cards) == 1:
        return first
    hashes = "\n".join(card.requests_hash for card in cards)
    same_config = all(card.config == first.config for card in cards)
    return EditCard(
        model_name=first.model_name,
        model_fingerprint=first.model_fingerprint,
        edits_on=first.edits_on,
        model_dtype=next((card.model_dtype for card in cards if card.model_dtype), None),
        model_gguf=next((card.model_gguf for card in cards if card.model_gguf), None),
        editor="+".join(dict.fromkeys(card.editor for card in cards)),
        config=first.config if same_config else {"merged": [card.config for card in cards]},
        requests_hash=hashlib.sha256(hashes.encode()).hexdigest(),
        n_edits=sum(card.n_edits for card in cards),
        versions=package_versions(),
        extra={"merged": [card.model_dump(mode="json") for card in cards]},
    )


def _parts(update: Update) -> tuple[Tensor, ...]:
    return (update.left, update.right) if isinstance(update, UpdateFactors) else (update,)


def _shape(update: Update) -> tuple[int, ...]:
    if isinstance(update, UpdateFactors):
        return (update.left.shape[0], update.right.shape[0])
    return tuple(update.shape)


def make_dense(update: Update) -> Tensor:
    """Δ in float64."""
    if isinstance(update, UpdateFactors):
        return update.left.double() @ update.right.double().T
    return update.double()


def frobenius_norm(update: Update) -> float:
    """‖Δ‖ in float64; of factors through their Gram matrices, without forming Δ."""
    if isinstance(update, UpdateFactors):
        left, right = update.left.double(), update.right.double()
        return float(((left.T @ left) * (right.T @ right)).sum().clamp_min(0).sqrt())
    return float(update.double().norm())
