"""What is worked out, and refused, before anything is run."""

from collections.abc import Sequence
from typing import ClassVar

import pytest
from tests.editbench.runner.toys import Toy, make_grid, random_update

from editbench.errors import ConfigError
from editbench.metrics.accuracy import Accuracy
from editbench.metrics.base import Metric
from editbench.metrics.success import Success
from editbench.metrics.token_accuracy import TokenAccuracy
from editbench.questions import Answers, Question
from editbench.requests import EditCase, EditRequest
from editbench.results.frame import load_rows
from editbench.runner import run_grid


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
