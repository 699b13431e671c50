"""Trained hypernetworks as files, and where to find the one that belongs to a model.

One safetensors: the network's tensors by their names, and in the metadata, under ``editbench``, a
record of where they come from.
"""

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from editbench.editors.mend.hypernetwork import Hypernetwork
from editbench.editors.mend.training_config import MendTraining
from editbench.editors.training.matrices import Matrix
from editbench.errors import EditError
from editbench.files.seals import checksum_file
from editbench.files.tensor_files import DamagedError, TensorFile, write_tensors
from editbench.models.editable import EditableModel

FORMAT = "mend-hypernetwork-1"


class TrainingRecord(BaseModel):
    """Where a trained hypernetwork comes from: everything that determines its weights.

    Attributes:
        format: Of the file.
        model_name: What the model was called.
        model_fingerprint: Hash of the model's weights and configuration.
        dataset: Name of the dataset that it was trained on.
        dataset_fingerprint: Hash of its content.
        validation: Name of the validation dataset; None where a share of `dataset` was held out.
        validation_fingerprint: Hash of its content.
        seed: Source of every random choice.
        config: The training's settings.
        matrices: Names of the weights that it edits.
        steps: Steps of the training in all; None in the record of one that goes on.
        best_step: After how many of them the network was as it is here.
        validation_losses: Per validation: step, L, L_edit, L_loc, and the share of target tokens
            that edited models gave.
        versions: Package name to version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: str = FORMAT
    model_name: str
    model_fingerprint: str
    dataset: str
    dataset_fingerprint: str
    validation: str | None
    validation_fingerprint: str | None
    seed: int
    config: MendTraining
    matrices: tuple[str, ...]
    steps: int | None = None
    best_step: int | None = None
    validation_losses: tuple[tuple[int, float, float, float, float], ...] = ()
    versions: dict[str, str]

    @property
    def origin(self) -> dict[str, Any]:
        """What must agree for a training to be taken up again; how long it lasts may change."""
        outcome = {"steps", "best_step", "validation_losses"}
        origin = self.model_dump(mode="json", exclude=outcome)
        del origin["config"]["max_steps"], origin["config"]["patience"]
        return origin


def write_state(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write tensors and a record to one safetensors file, whole or not at all.

    Raises:
        EditError: The file cannot be written.
    """
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, own, card)
    except OSError as error:
        raise EditError(
            f"train mend: cannot write the file, got {str(path)!r} ({error}). "
            "Choose a folder that is writable and has space left."
        ) from error


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_state` wrote.

    Raises:
        EditError: The file is missing, damaged, or of another kind.
    """
    try:
        file = TensorFile(path)
        tensors = file.read_all()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if file.card is None:
        raise _foreign(path)
    return tensors, file.card


def write_trained(path: Path, network_tensors: dict[str, Tensor], record: TrainingRecord) -> None:
    """Write a trained hypernetwork.

    Raises:
        EditError: The file cannot be written.
    """
    write_state(path, network_tensors, record.model_dump(mode="json"))


def read_record(path: Path) -> TrainingRecord:
    """Read where a trained hypernetwork comes from.

    Raises:
        EditError: The file is missing, damaged, or of another kind.
    """
    try:
        return _parse_record(path, TensorFile(path).card)
    except DamagedError as error:
        raise _unreadable(path, error) from error
    except (OSError, ValueError) as error:
        raise _foreign(path) from error


def read_trained(path: Path, model: EditableModel) -> tuple[Hypernetwork, TrainingRecord]:
    """Read a trained hypernetwork, put it where the model is, and set it to evaluation.

    Raises:
        EditError: The file is missing, damaged or of another kind, or belongs to another model.
    """
    tensors, card = read_state(path)
    record = _parse_record(path, card)
    check_fits(record, path, model)
    matrices = [Matrix.of(model, name.removesuffix(".weight")) for name in record.matrices]
    config = record.config
    network = Hypernetwork(matrices, rank=config.rank, rate=config.initial_rate, seed=0)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise EditError(
            f"mend: the tensors in {str(path)!r} are not those of its record: {error}. "
            "Train it again with 'editbench train mend'."
        ) from error
    return network.to(model.device).eval().requires_grad_(False), record


def check_fits(record: TrainingRecord, path: Path, model: EditableModel) -> None:
    """Refuse a hypernetwork that was trained for another model.

    Raises:
        EditError: It was; the message names both.
    """
    if record.model_fingerprint != model.fingerprint:
        raise EditError(
            f"mend: the hypernetwork in {str(path)!r} was trained for another model, got "
            f"'{record.model_name}' with fingerprint {record.model_fingerprint}; expected "
            f"'{model.name}' with fingerprint {model.fingerprint}. Train one for this model with "
            "'editbench train mend'."
        )


def trained_path(model: EditableModel) -> Path:
    """Where ``editbench train mend`` puts the hypernetwork of a model, if told nothing else.

    In the folder that the environment variable ``EDITBENCH_CACHE`` names, else in the user's cache
    folder.
    """
    cache = os.environ.get("EDITBENCH_CACHE")
    folder = Path(cache) if cache else platformdirs.user_cache_path("editbench")
    return folder / "mend" / f"{model.fingerprint}.safetensors"


def find_trained(model: EditableModel, sha256: str | None = None) -> Path | None:
    """Find a hypernetwork for a model: the user's own, else the one that ships with editbench.

    With `sha256`, one that hashes to it.
    """
    shipped = Path(str(files("editbench.editors.mend") / "shipped")).glob("*.safetensors")
    for path in (trained_path(model), *sorted(shipped)):
        fits = path.is_file() and read_record(path).model_fingerprint == model.fingerprint
        if fits and sha256 in (None, checksum_file(path)):
            return path
    return None


def _parse_record(path: Path, card: object) -> TrainingRecord:
    try:
        return TrainingRecord.model_validate(card)
    except ValidationError as error:
        raise _foreign(path) from error


def _unreadable(path: Path, error: Exception) -> EditError:
    return EditError(
        f"mend: cannot read the trained hypernetwork, got {str(path)!r} ({error}). "
        "Check the path, or train it again with 'editbench train mend'."
    )


def _foreign(path: Path) -> EditError:
    return EditError(
        f"mend: the file holds no trained hypernetwork of the format '{FORMAT}', got "
        f"{str(path)!r}. Give a file that 'editbench train mend' wrote."
    )
