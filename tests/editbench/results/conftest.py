from collections.abc import Callable, Sequence

import pytest

from editbench.results.manifest import MetricDescription, RunManifest, TrialDescription
from editbench.results.row import Row, Status
from editbench.results.store import TrialRecord

METRICS = (
    MetricDescription(
        name="success",
        version=1,
        produces=("efficacy_success", "neighborhood_success"),
        aggregates={"score": ("efficacy_success", "neighborhood_success")},
    ),
    MetricDescription(
        name="fluency",
        version=1,
        produces=("perplexity",),
        bounds=(0.0, None),
        higher_is_better=False,
    ),
)


@pytest.fixture
def describe() -> Callable[..., TrialDescription]:
    def make(**fields: object) -> TrialDescription:
        defaults: dict[str, object] = {
            "editor": "memit",
            "config": {"n_steps": 20},
            "model": "gpt2",
            "model_fingerprint": "f1",
            "dataset": "toy",
            "dataset_fingerprint": "d1",
            "n_edits": 2,
            "seed": 0,
            "sample": "first",
            "on_conflict": "error",
            "metrics": {"success": 1},
        }
        return TrialDescription(**{**defaults, **fields})

    return make


@pytest.fixture
def plan() -> Callable[..., RunManifest]:
    def make(*trials: TrialDescription) -> RunManifest:
        return RunManifest(
            created="2026-01-01T00:00:00+00:00",
            provenance={"python": "3"},
            metrics=METRICS,
            trials={trial.hash: trial for trial in trials},
        )

    return make


@pytest.fixture
def record() -> Callable[..., TrialRecord]:
    def make(trial: TrialDescription, status: Status = "ok", **fields: object) -> TrialRecord:
        return TrialRecord(
            trial=trial.hash, status=status, finished="2026-01-01T00:00:00+00:00", **fields
        )

    return make


@pytest.fixture
def rows() -> Callable[..., list[Row]]:
    def make(
        trial: TrialDescription,
        values: dict[str, Sequence[float | None]],
        status: Status = "ok",
    ) -> list[Row]:
        return [
            Row(
                trial=trial.hash,
                editor=trial.editor,
                model=trial.model,
                dataset=trial.dataset,
                n_edits=trial.n_edits,
                seed=trial.seed,
                case_id=f"case {index}",
                metric=metric,
                value=value,
                status=status,
            )
            for metric, numbers in values.items()
            for index, value in enumerate(numbers)
            if value is not None
        ]

    return make


@pytest.fixture
def failed_row() -> Callable[[TrialDescription, str], Row]:
    def make(trial: TrialDescription, message: str) -> Row:
        return Row(
            trial=trial.hash,
            editor=trial.editor,
            model=trial.model,
            dataset=trial.dataset,
            n_edits=trial.n_edits,
            seed=trial.seed,
            case_id=None,
            metric=None,
            value=None,
            status="error",
            message=message,
        )

    return make
