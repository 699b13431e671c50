"""UltraEdit: no target states, one gradient a fact, one ridge regression (Gu et al., 2025)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from editbench.costs.stage import ExpectedCache, StageCost
from editbench.editors.base import Editor, EditorConfig, Resources
from editbench.editors.references import cite
from editbench.editors.stream import Carried, Stream, WrittenFacts, tell_written
from editbench.editors.subject_tokens import target_row
from editbench.editors.training.batches import (
    count_fitting,
    cut_requests,
    estimate_training,
)
from editbench.editors.training.gradients import GradientTerms, gather_gradients
from editbench.editors.training.matrices import Matrix, find_matrices
from editbench.edits.files import Update, assemble_updates, name_tensors
from editbench.edits.weight_edit import (
    WeightEdit,
    lay_out,
    orient_for_edit,
    orient_for_module,
    sum_updates,
)
from editbench.models.editable import EditableModel
from editbench.models.offload import updated_weights
from editbench.models.out_of_memory import Halving
from editbench.requests import EditRequest
from memit_core import Preservation, solve_edits

STAGE = "gradients"
_EPSILON = 1e-8


class UltraEditConfig(EditorConfig):
    """Every number of UltraEdit; in brackets the reference's names."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "reference": {"learning_rate": 1e-6, "learning_rate_unit": "absolute"}
    }

    critical_layers: tuple[int, ...] = Field(min_length=1, description="blocks that are written to")
    matrices: Literal["inputs", "output", "all"] = Field(
        default="inputs",
        description="which of an MLP's matrices: those into it (gate and up), the one out of it, "
        "or all (edit_modules)",
    )
    learning_rate: float = Field(
        default=0.25, gt=0, description="η: how far values move, in standard deviations (lr)"
    )
    learning_rate_unit: Literal["absolute", "relative"] = Field(
        default="relative",
        description="relative: times what a matrix says on average, at keys of average length; "
        "absolute, as the reference has it, does not carry over between models",
    )
    ridge: float = Field(
        default=1.0, gt=0, description="weight of ‖Δ‖², in the units of keys (fixed: 1)"
    )


class UltraEdit(Editor):
    """UltraEdit: no target states; values follow their gradients, and one regression writes them.

    Where a matrix predicts a target's token, h is its input and g the gradient of −log p by its
    output. Both are standardized by their means and deviations over all facts so far, and the
    wanted change of values is V = -η ‖ĥ‖² ĝ. All of a batch are written at once:
    Δ = VᵀH (HᵀH + I)⁻¹. Nothing else is carried from batch to batch, and nothing is preserved.
    """

    name: ClassVar[str] = "ultraedit"
    config_type: ClassVar[type[EditorConfig]] = UltraEditConfig
    config: UltraEditConfig
    good_for: ClassVar[str] = "speed: what an edit costs without target states"
    citation: ClassVar[str] = cite("gu2025ultraedit")

    @classmethod
    def derive_defaults(cls, model: EditableModel) -> Mapping[str, Any]:
        """Two thirds up to just below the end, as published (Qwen2.5 18 to 26 of 28)."""
        n_layers = model.architecture.n_layers
        last = max(0, round(0.94 * n_layers) - 1)
        return {"critical_layers": tuple(range(min(last, round(0.64 * n_layers)), last + 1))}

    def estimate(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        resources: Resources,
        known: ExpectedCache,
    ) -> Sequence[StageCost]:
        """One pass forwards and backwards; see `Editor.estimate`."""
        size = count_fitting(model, requests, first=0)
        return [
            estimate_training(
                model, requests, name=STAGE, first=0, n_trained=0, batch_size=size, n_epochs=1
            )
        ]

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> WeightEdit:
        """Compute the edit, as a stream of one batch; see `Editor.edit`."""
        return self.open_stream(model, resources).write(requests)

    def open_stream(
        self, model: EditableModel, resources: Resources, carried: Carried | None = None
    ) -> "UltraEditStream":
        """Carry means and deviations, and the sum of all updates; see `Editor.open_stream`."""
        return UltraEditStream(self, model, resources, carried)


class UltraEditStream(Stream):
    """Gathers gradients of each batch, and writes it by one regression."""

    def __init__(
        self,
        editor: UltraEdit,
        model: EditableModel,
        resources: Resources,
        carried: Carried | None = None,
    ) -> None:
        model.check_known(editor.name)
        self._editor = editor
        self._config = editor.config
        self._model = model
        self._resources = resources
        self._matrices = self._find_matrices(model)
        self._statistics: dict[str, _Statistics] = {}  # of all matrices of a shape
        self._updates: dict[str, Update] = {}
        self._written = WrittenFacts()
        if carried is not None:
            self._written = WrittenFacts(carried.requests)
            self._updates = assemble_updates(Path("stream"), carried.part("updates."))
            for shape, n_rows in carried.content["n_rows"].items():
                found = carried.part(f"{shape}.")
                self._statistics[shape] = _Statistics(n_rows, found["mean"], found["squares"])

    def write(self, batch: Sequence[EditRequest]) -> WeightEdit:
        """Write one more batch; see `Stream.write`."""
        model, config, matrices = self._model, self._config, self._matrices
        # Nobody asks for the model's state meanwhile, so it need not be hashed for every batch.
        earlier = {
            name: orient_for_module(model, name, model.model.get_parameter(name), update)
            for name, update in self._updates.items()
        }
        with updated_weights(model.model, earlier):
            terms = _gather(model, matrices, batch, self._resources)
            for matrix in matrices:
                self._statistics_of(matrix).add(_rows(terms[matrix.name]))
            for matrix in matrices:
                found = terms[matrix.name]
                values = self._values(model, matrix, found, self._statistics_of(matrix))
                price = Preservation(None, ridge=config.ridge)
                update: Update = solve_edits(found.inputs, values, price).to("cpu")
                if matrix.name in self._updates:
                    update = sum_updates(matrix.name, self._updates[matrix.name], update)
                self._updates[matrix.name] = lay_out(update)
        self._written.add(batch)
        requests = self._written.requests
        facts = tell_written(requests)
        return WeightEdit.build(
            model,
            editor=self._editor.name,
            config=config,
            requests=requests,
            updates=self._updates,
            extra={"facts": self._written.tell(facts)},
        )

    @property
    def carried(self) -> Carried:
        """Means, deviations and updates; see `Stream.carried`."""
        tensors = {f"updates.{name}": each for name, each in name_tensors(self._updates).items()}
        for shape, found in self._statistics.items():
            tensors[f"{shape}.mean"] = torch.as_tensor(found.mean)
            tensors[f"{shape}.squares"] = torch.as_tensor(found.squares)
        n_rows = {shape: found.n_rows for shape, found in self._statistics.items()}
        return Carried(
            tensors, {**Carried.write_requests(self._written.requests), "n_rows": n_rows}
        )

    def _statistics_of(self, matrix: Matrix) -> "_Statistics":
        shape = f"{matrix.d_in}x{matrix.d_out}"
        return self._statistics.setdefault(shape, _Statistics())

    def _find_matrices(self, model: EditableModel) -> list[Matrix]:
        layers, which = self._config.critical_layers, self._config.matrices
        for layer in layers:
            model.architecture.check_layer(layer)
        outputs = {model.architecture.projection(layer, "mlp") for layer in layers}
        wanted = {"inputs": (False,), "output": (True,), "all": (False, True)}[which]
        found = find_matrices(model, layers)
        return [matrix for matrix in found if (matrix.module in outputs) in wanted]

    def _values(
        self, model: EditableModel, matrix: Matrix, terms: GradientTerms, shared: "_Statistics"
    ) -> Tensor:
        """V: how values are to change, `[n_tokens, d_out]`."""
        keys, gradients = shared.standardize(_rows(terms)).split([matrix.d_in, matrix.d_out], dim=1)
        rate = self._config.learning_rate
        if self._config.learning_rate_unit == "relative":
            parameter = model.model.get_parameter(matrix.name).detach()
            weight = orient_for_edit(model, matrix.name, parameter).to(terms.inputs)
            rate *= float((terms.inputs @ weight.mT).square().mean().sqrt()) / matrix.d_in
        return -rate * keys.square().sum(dim=1, keepdim=True) * gradients


@dataclass
class _Statistics:
    """Mean and spread of all rows so far, column by column, in float64."""

    n_rows: int = 0
    mean: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, rows: Tensor) -> None:
        """Take rows `[n, width]` in."""
        n_rows = self.n_rows + len(rows)
        mean = rows.mean(dim=0)
        apart = mean - self.mean
        self.squares = (
            self.squares
            + (rows - mean).square().sum(dim=0)
            + apart.square() * (self.n_rows * len(rows) / max(1, n_rows))
        )
        self.mean = self.mean + apart * (len(rows) / max(1, n_rows))
        self.n_rows = n_rows

    def standardize(self, rows: Tensor) -> Tensor:
        """Rows less the mean, over the standard deviation."""
        deviation = torch.as_tensor(self.squares / max(1, self.n_rows - 1)).sqrt()
        return (rows - self.mean) / (deviation + _EPSILON)


def _gather(
    model: EditableModel,
    matrices: Sequence[Matrix],
    requests: Sequence[EditRequest],
    resources: Resources,
) -> dict[str, GradientTerms]:
    """Inputs and gradients where targets are predicted, many facts at a time."""
    halving = Halving(f"gradients of edits on '{model.name}'")
    parts: list[dict[str, GradientTerms]] = []
    counts: list[int] = []
    for some in cut_requests(requests, count_fitting(model, requests, first=0)):
        resources.report_progress(STAGE, sum(counts), len(requests))
        found = gather_gradients(model, matrices, some, halving)
        parts.append({name: _predicting(model, terms, some) for name, terms in found.items()})
        counts.append(len(some))
    resources.report_progress(STAGE, len(requests), len(requests))
    names = [matrix.name for matrix in matrices]
    return {name: GradientTerms.joined([part[name] for part in parts], counts) for name in names}


def _predicting(
    model: EditableModel, terms: GradientTerms, requests: Sequence[EditRequest]
) -> GradientTerms:
    """The terms at the places that predict a token of the target."""
    rows = [target_row(model.tokens, request, "") for request in requests]
    starts = torch.tensor([row.target_start for row in rows]).to(terms.edits)
    ends = torch.tensor([row.target_start + len(row.target_ids) for row in rows]).to(terms.edits)
    edits, positions = terms.edits, terms.positions
    chosen = (positions >= starts[edits]) & (positions < ends[edits])
    return GradientTerms(
        terms.inputs[chosen], terms.gradients[chosen], edits[chosen], positions[chosen]
    )


def _rows(terms: GradientTerms) -> Tensor:
    """[h, g] of every token, `[n_tokens, d_in + d_out]`, in float64."""
    return torch.cat([terms.inputs, terms.gradients], dim=1).cpu().double()
