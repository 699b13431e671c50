"""The editor MEND: gradients of all edits, through a trained hypernetwork, into one update."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from editbench.costs.stage import ExpectedCache, StageCost
from editbench.editors.base import EditorConfig, Resources, TrainedEditor
from editbench.editors.mend.hypernetwork import Hypernetwork
from editbench.editors.mend.trained_file import (
    check_fits,
    find_trained,
    read_record,
    read_trained,
    trained_path,
    write_trained,
)
from editbench.editors.mend.training import DataOrigin, train_hypernetwork
from editbench.editors.mend.training_config import MendTraining
from editbench.editors.references import cite
from editbench.editors.search_space import SearchSpace
from editbench.editors.stream import tell_written
from editbench.editors.training.batches import (
    count_fitting,
    cut_requests,
    estimate_training,
)
from editbench.editors.training.gradients import decompose_gradients
from editbench.edits.edit import Edit
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import ConfigError, EditError
from editbench.files.seals import checksum_file
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import Halving
from editbench.progress import report_nothing
from editbench.requests import EditCase, EditRequest
from memit_core import UpdateFactors

STAGE = "gradients"


class MendConfig(EditorConfig):
    """What MEND needs besides its trained hypernetwork; in brackets the reference's names."""

    weights: Path | None = Field(
        default=None,
        description="file of the trained hypernetwork; null: found by the model's fingerprint",
    )
    weights_sha256: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="hash of that file, so that results are told apart by what it holds; filled in",
    )
    chunk_size: int = Field(
        default=128,
        ge=1,
        description="edits whose gradients are computed together, at most (fixed: 128)",
    )
    lr_scale: float = Field(
        default=1.0, gt=0, description="what all learned rates are multiplied with (lr_scale)"
    )

    @model_validator(mode="before")
    @classmethod
    def _hash_weights(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("weights") is None:
            return values
        path = Path(values["weights"]).expanduser()
        try:
            found = checksum_file(path)
        except OSError as error:
            raise ValueError(f"cannot read the file of weights ({error.strerror})") from error
        if values.get("weights_sha256") not in (None, found):
            raise ValueError(
                f"{path} holds other weights than weights_sha256 says: its hash is {found}"
            )
        return {**values, "weights": path, "weights_sha256": found}

    def updated(self, values: Mapping[str, Any], source: str) -> Self:
        """The same configuration with some fields replaced; other weights get their own hash."""
        hashed = {"weights_sha256": None} if "weights" in values else {}
        return super().updated({**hashed, **values}, source)


class Mend(TrainedEditor):
    """Model editor networks with gradient decomposition.

    The gradient of each edit's loss by each edited weight is a sum of rank-1 terms, one a token
    (`decompose_gradients`). A hypernetwork, trained beforehand for this very model, turns each
    term into another (`Hypernetwork`), and the new terms of all edits add up to the update.

    All edits count, whatever the chunks in which their gradients are computed, and the statistics
    that normalize are those of training. The reference implementation keeps the terms of the last
    chunk of 128 only, takes new statistics from the edits, and on GPT-2 uses the learned rates of
    other weights.
    """

    name: ClassVar[str] = "mend"
    good_for: ClassVar[str] = "edits in one step, by a network that was trained for the model"
    citation: ClassVar[str] = cite("mitchell2022mend")
    config_type: ClassVar[type[EditorConfig]] = MendConfig
    config: MendConfig

    @classmethod
    def default_config(cls, model: EditableModel) -> tuple[EditorConfig, str]:
        """See `Editor.default_config`; names the trained hypernetwork of the model by its hash."""
        config, origin = super().default_config(model)
        path = find_trained(model)
        if path is None:
            return config, origin
        return config.updated({"weights_sha256": checksum_file(path)}, str(path)), origin

    def describe_trained(self, model: EditableModel) -> str:
        """Which hypernetwork it edits with; see `Editor.describe_trained`."""
        path = self._known_weights(model)
        if path is None:
            return "no trained hypernetwork is there yet"
        record = read_record(path)
        steps = f"{record.best_step:,} steps"
        return f"hypernetwork trained on '{record.dataset}' for {steps}, from {path}"

    @classmethod
    def search_space(cls, model: EditableModel, config: EditorConfig) -> SearchSpace:
        """What matters in MEND is learned; see `Editor.search_space`."""
        raise ConfigError(
            "tune: what matters in MEND is learned, got editor 'mend'. Train its hypernetwork with "
            "'editbench train mend', which stops by validation cases."
        )

    @classmethod
    def train_briefly(
        cls, model: EditableModel, cases: Sequence[EditCase], folder: Path
    ) -> EditorConfig:
        """Train a hypernetwork for a few steps; see `TrainedEditor.train_briefly`."""
        training = MendTraining(
            rank=4, learning_rate=1e-3, initial_rate=1e-2, batch_size=2, max_steps=4
        )
        data = DataOrigin("toy", "toy")
        trained = train_hypernetwork(
            model, cases, cases, training, data, seed=0, report_progress=report_nothing
        )
        path = folder / "mend.safetensors"
        write_trained(path, trained.tensors, trained.record)
        return MendConfig(weights=path)

    def check_usable(self, model: EditableModel) -> None:
        """Refuse a model that no hypernetwork was trained for; see `Editor.check_usable`."""
        if model.planned_device is not None:
            return  # nobody knows whose weights it will have
        path = self._find_weights(model)
        check_fits(read_record(path), path, model)

    def estimate(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        resources: Resources,
        expected: ExpectedCache,
    ) -> Sequence[StageCost]:
        """One pass forwards and backwards; the hypernetwork is small. See `Editor.estimate`."""
        size = self._chunk_size(model, requests)
        return [
            estimate_training(
                model, requests, name=STAGE, first=0, n_trained=0, batch_size=size, n_epochs=1
            )
        ]

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        """Compute the edit; see `Editor.edit`."""
        model.check_known(self.name)
        path = self._find_weights(model)
        network, record = read_trained(path, model)
        totals = {matrix.name: _Total() for matrix in network.matrices}
        loss = 0.0
        transform = partial(self._transform, model, network)
        halving = Halving(f"gradients of edits on '{model.name}'")
        size = self._chunk_size(model, requests)
        n_done = 0
        for chunk in cut_requests(requests, size):
            resources.report_progress(STAGE, n_done, len(requests))
            n_done += len(chunk)
            for updates, its_loss in halving.run(chunk, transform):
                loss += its_loss
                for name, (left, right) in updates.items():
                    totals[name].add(left, right)
        resources.report_progress(STAGE, len(requests), len(requests))
        return WeightEdit.build(
            model,
            editor=self.name,
            config=self.config,
            requests=requests,
            updates={name: total.update for name, total in totals.items() if not total.is_empty},
            extra={
                "facts": tell_written(requests),
                "weights_sha256": self.config.weights_sha256,
                "training": record.model_dump(mode="json", exclude={"validation_losses"}),
                "rates": {
                    name: network.rate_of(name).item() * self.config.lr_scale for name in totals
                },
                "loss": round(loss / len(requests), 4) if requests else None,
            },
        )

    def _chunk_size(self, model: EditableModel, requests: Sequence[EditRequest]) -> int:
        """How many edits run together: what they come to does not depend on it."""
        return min(self.config.chunk_size, count_fitting(model, requests, first=0))

    def _known_weights(self, model: EditableModel) -> Path | None:
        if self.config.weights is not None or self.config.weights_sha256 is None:
            return self.config.weights
        return find_trained(model, self.config.weights_sha256)

    def _find_weights(self, model: EditableModel) -> Path:
        path, sha256 = self._known_weights(model), self.config.weights_sha256
        if path is None:
            wanted = "" if sha256 is None else f" with the hash {sha256}"
            raise EditError(
                f"mend: no trained hypernetwork{wanted} is known for '{model.name}', got "
                f"fingerprint {model.fingerprint}. Train one with 'editbench train mend --model "
                f"{model.name} --dataset NAME', which puts it at {trained_path(model)}, or give a "
                "file: --set mend.weights=FILE. In Python, start from Mend.default_config(model)."
            )
        return path

    def _transform(
        self, model: EditableModel, network: Hypernetwork, requests: Sequence[EditRequest]
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
        """The updates of some requests, ``[d_out, n]`` and ``[d_in, n]``; and their losses' sum."""
        terms, loss = decompose_gradients(model, network.matrices, requests)
        updates = {}
        with torch.no_grad():
            for matrix in network.matrices:
                left, right = network(matrix, terms[matrix.name])
                updates[matrix.name] = (left.T * self.config.lr_scale, right.T)
        return updates, loss * len(requests)


class _Total:
    """A sum of updates: as factors while these are smaller, then dense, in float64."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._dense: Tensor | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added."""
        return self._dense is None and not self._parts

    @property
    def update(self) -> UpdateFactors | Tensor:
        """The sum, ``[d_out, d_in]``."""
        if self._dense is not None:
            return self._dense
        lefts, rights = zip(*self._parts, strict=True)
        return UpdateFactors(torch.cat(lefts, dim=1), torch.cat(rights, dim=1))

    def add(self, left: Tensor, right: Tensor) -> None:
        """Add left rightᵀ, ``[d_out, n]`` and ``[d_in, n]``."""
        self._parts.append((left.cpu().double(), right.cpu().double()))
        rank = sum(part.shape[1] for part, _ in self._parts)
        if self._dense is not None or rank >= min(len(left), len(right)):
            if self._dense is None:
                self._dense = torch.zeros(len(left), len(right), dtype=torch.float64)
            for one, other in self._parts:
                self._dense.addmm_(one, other.T)
            self._parts = []
