"""What is worked out, and refused, before anything is run."""

from collections.abc import Sequence
from typing import ClassVar

import pytest
from tests.editbench.runner.toys import Toy, make_grid, random_update

from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.rome import Rome, RomeConfig
from editbench.errors import ConfigError, SecondMomentError
from editbench.metrics.base import Metric
from editbench.metrics.probes import Accuracy, Success, TokenAccuracy
from editbench.progress import report_nothing
from editbench.questions import Answers, Question
from editbench.requests import EditCase, EditRequest
from editbench.results.frame import load_rows
from editbench.runner import Inputs, run_grid
from editbench.second_moments.collection_files import collect_to_file
from editbench.testing import toy_corpus


def test_metrics_must_have_something_to_ask_and_names_of_their_own(model, tmp_path):
    def run(metrics: Sequence[Metric], cases: Sequence[EditCase] = ()) -> None:
        run_grid(make_grid(model, metrics=metrics, dataset=Toy(cases)), tmp_path / "run")

    bare = [EditCase(EditRequest(str(i), "Ana", "{} is a", "poet")) for i in range(4)]
    with pytest.raises(ConfigError, match="'success': has nothing to ask about dataset 'toy'"):
        run([Success()], bare)
    with pytest.raises(ConfigError, match="both produce 'efficacy_accuracy'"):
        run([Accuracy(), TokenAccuracy()])
    with pytest.raises(ConfigError, match="got no metric"):
        run([])
    with pytest.raises(ConfigError, match="got no trial"):
        run_grid([], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("editor", "layer"),
    [
        (Memit(MemitConfig(critical_layers=(0, 1), preservation_weight=1.0)), 1),
        (Rome(RomeConfig(critical_layers=(1,))), 1),
    ],
    ids=["memit", "rome"],
)
def test_second_moments_of_other_layers_are_refused_before_anything_is_run(
    model, tmp_path, editor, layer
):
    moments = tmp_path / "moments.safetensors"
    collect_to_file(model, toy_corpus(), [0], 500, moments, report_nothing)
    inputs = Inputs(second_moments=moments)
    trials = make_grid(model, editor, inputs=lambda model, dataset: inputs)
    with pytest.raises(SecondMomentError, match=rf"layer {layer}|layers? .*{layer}"):
        run_grid(trials, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Place(Metric):
    """Where in its dataset a case is."""

    name: ClassVar[str] = "place"
    produces: ClassVar[tuple[str, ...]] = ("place",)
    n_fitted: ClassVar[int] = 0

    def __init__(self, ids: Sequence[str] = ()) -> None:
        self._ids = list(ids)

    def fitted(self, cases: Sequence[EditCase]) -> Metric:
        Place.n_fitted += 1
        return Place([case.request.case_id for case in cases])

    def questions(self, case: EditCase) -> tuple[Question, ...]:
        return Success().questions(case)

    def values(self, case: EditCase, answers: Answers) -> dict[str, float]:
        return {"place": self._ids.index(case.request.case_id) / len(self._ids)}


def test_metrics_are_fitted_once_to_all_cases_whichever_are_edited(model, tmp_path):
    before = Place.n_fitted
    trials = make_grid(
        model, random_update(), n_edits=[2, 5], seeds=[0, 1], metrics=[Place()], sample="shuffled"
    )
    run_grid(trials, tmp_path)
    assert Place.n_fitted == before + 1
    frame = load_rows([tmp_path])
    assert len(frame) == 2 * 2 * (2 + 5)
    assert all(frame["value"] == frame["case_id"].astype(int) / 12)
