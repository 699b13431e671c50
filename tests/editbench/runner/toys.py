"""Editors, a dataset, a metric and grids that the runner's tests share."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from editbench.datasets.base import Dataset
from editbench.editors.base import Editor, EditorConfig, Resources
from editbench.edits.edit import Edit
from editbench.edits.weight_edit import WeightEdit
from editbench.metrics.base import AnyMetric, Metric
from editbench.metrics.probes import Accuracy, Success
from editbench.models.editable import EditableModel
from editbench.questions import Answers, Generate, GenerateAnswer, Question
from editbench.requests import EditCase, EditRequest
from editbench.runner import Trial, grid
from editbench.testing import toy_cases
from memit_core import UpdateFactors


class RandomConfig(EditorConfig):
    scale: float = 0.05


class RandomUpdate(Editor):
    """Adds a random update of rank one to the first layer."""

    name: ClassVar[str] = "random"
    config_type: ClassVar[type[EditorConfig]] = RandomConfig
    config: RandomConfig

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        generator = torch.Generator().manual_seed(resources.seed)
        projection = model.architecture.mlp_projections[0]
        left = torch.randn(model.architecture.d_model, 1, generator=generator)
        right = torch.randn(model.d_key(0), 1, generator=generator)
        name = model.architecture.weight_name(projection)
        return WeightEdit.build(
            model,
            editor=self.name,
            config=self.config,
            requests=requests,
            updates={name: UpdateFactors(self.config.scale * left, right)},
        )


class Broken(RandomUpdate):
    name: ClassVar[str] = "broken"

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        raise RuntimeError("the wheels\ncame off")


class Toy(Dataset):
    """Facts about jobs."""

    name: ClassVar[str] = "toy"
    fingerprint = "toy-1"

    def __init__(self, cases: Sequence[EditCase] = ()) -> None:
        self._cases = list(cases) or toy_cases(12)

    def cases(self) -> Sequence[EditCase]:
        return self._cases


class Length(Metric):
    """How long a generated text is; asks a question that depends on the seed."""

    name: ClassVar[str] = "length"
    produces: ClassVar[tuple[str, ...]] = ("length",)
    bounds: ClassVar[tuple[float, float]] = (0.0, float("inf"))

    def questions(self, case: EditCase) -> tuple[Question, ...]:
        return tuple(Generate(prompt, 12) for prompt in case.generation_prompts)

    def values(self, case: EditCase, answers: Answers) -> dict[str, float]:
        texts = [answers[question] for question in self.questions(case)]
        return {"length": sum(len(text.text) for text in texts if isinstance(text, GenerateAnswer))}


def make_grid(
    model: EditableModel,
    *editors: Editor,
    n_edits: Sequence[int] = (4,),
    seeds: Sequence[int] = (0,),
    metrics: Sequence[AnyMetric] = (Success(), Accuracy()),
    dataset: Dataset | None = None,
    **options: object,
) -> list[Trial]:
    return grid(
        models=[model],
        datasets=[dataset or Toy()],
        editors=lambda _: list(editors),
        metrics=lambda _: list(metrics),
        n_edits=n_edits,
        seeds=seeds,
        **options,
    )


def random_update(scale: float = 0.05) -> RandomUpdate:
    return RandomUpdate(RandomConfig(scale=scale))


def rows_of(folder: Path) -> dict[str, list[str]]:
    return {
        path.parent.name: path.read_text(encoding="utf-8").splitlines()
        for path in sorted(folder.glob("trials/*/rows.jsonl"))
    }
