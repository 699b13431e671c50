from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from editbench.results.manifest import MetricDescription, RunManifest, TrialDescription
from editbench.results.row import Row, Status
from editbench.results.store import RunStore, TrialRecord

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

ALL_METRICS = (
    *(
        MetricDescription(
            name=name,
            version=1,
            produces=parts,
            aggregates={score: parts},
        )
        for name, score in (("success", "score"), ("accuracy", "accuracy_score"))
        for parts in [
            tuple(f"{kind}_{name}" for kind in ("efficacy", "paraphrase", "neighborhood"))
        ]
    ),
    MetricDescription(
        name="generation-entropy", version=1, produces=("generation_entropy",), bounds=(0.0, None)
    ),
    MetricDescription(
        name="reference-score", version=1, produces=("reference_score",), bounds=(0.0, 100.0)
    ),
    MetricDescription(
        name="perplexity",
        version=1,
        produces=("perplexity",),
        mean="geometric",
        bounds=(1.0, None),
        higher_is_better=False,
    ),
)
RELATIONS = (
    "occupation", "headquarters", "citizenship", "native_language", "spoken_language", "sport",
    "instrument", "country of origin of works of art and $literature",
)  # fmt: skip
SIZES = (1, 2, 3, 6, 10, 18, 32, 56, 100, 178, 316, 562, 1000)


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


@pytest.fixture
def write_run(tmp_path, record, rows, failed_row) -> Callable[..., Path]:
    """Writes a run folder: real files, chosen numbers."""

    def write(
        trials: Mapping[str, TrialDescription],
        values: Mapping[str, Mapping[str, Sequence[float | None]]],
        *,
        metrics: Sequence[MetricDescription] = METRICS,
        experiment: str | None = None,
        failed: Collection[str] = (),
        folder: str = "run",
    ) -> Path:
        """A trial of `trials` without `values` that has not failed is one that is still to come."""
        manifest = RunManifest(
            created="2026-01-01T00:00:00+00:00",
            provenance={"python": "3", **({"experiment": experiment} if experiment else {})},
            metrics=tuple(metrics),
            trials={description.hash: description for description in trials.values()},
        )
        with RunStore.open(tmp_path / folder, manifest, resume=False) as store:
            for name, description in trials.items():
                if name in failed:
                    message = "RuntimeError: out of luck"
                    store.write(
                        record(description, "error", message=message),
                        [failed_row(description, message)],
                    )
                elif name in values:
                    store.write(record(description), rows(description, values[name]))
        return tmp_path / folder

    return write


@pytest.fixture
def write_experiment(write_run, describe) -> Callable[..., Path]:
    """Writes a run of one of the paper's experiments, with numbers such as there might be."""

    def write(
        experiment: str,
        *,
        n_cases: int = 4,
        all_metrics: bool = False,
        named: bool = True,
        missing: Callable[[TrialDescription], bool] = lambda trial: False,
        failed: Callable[[TrialDescription], bool] = lambda trial: False,
        **fields: object,
    ) -> Path:
        trials = {}
        for plan in plan_experiment(experiment):
            trial = describe(**{"model": "gpt2-xl", "dataset": "counterfact", **plan, **fields})
            trials[trial.hash] = trial
        values = {name: imagine(trial, n_cases) for name, trial in trials.items()}
        if not all_metrics:
            chosen = ALL_METRICS[0].produces
            values = {
                name: {metric: numbers[metric] for metric in chosen}
                for name, numbers in values.items()
            }
        return write_run(
            trials,
            {name: values[name] for name, trial in trials.items() if not missing(trial)},
            metrics=ALL_METRICS,
            experiment=experiment if named else None,
            failed=[name for name, trial in trials.items() if failed(trial)],
            folder=experiment,
        )

    return write


def plan_experiment(name: str) -> list[dict[str, object]]:
    """The fields in which an experiment's trials differ, as `editbench reproduce` chooses them."""
    editors = {"unedited": {}, "ft-w": {"weight_decay": 5e-4}, "mend": {}, "rome": {"layer": 5}}
    editors["memit"] = {"critical_layers": [3, 4, 5, 6, 7, 8], "preservation_weight": 15000.0}
    all_editors = [{"editor": editor, "config": config} for editor, config in editors.items()]
    unedited, memit = all_editors[0], all_editors[-1]
    memit_config = editors["memit"]

    def vary(editor: str, config: dict[str, object], field: str, values: Sequence[object]):
        return [{"editor": editor, "config": {**config, field: value}} for value in values]

    relations = [(name,) for name in RELATIONS]
    pairs = list(zip(RELATIONS[::4], RELATIONS[3::4], strict=True))
    return {
        "table1": lambda: [{**one, "n_edits": 300} for one in all_editors],
        "table2": lambda: [{**one, "n_edits": 300} for one in all_editors],
        "scaling": lambda: [{**one, "n_edits": n} for n in SIZES for one in all_editors],
        "categories": lambda: [
            {**one, "n_edits": 300, "relations": group}
            for group in relations
            for one in all_editors
        ],
        "mixing": lambda: [
            {**one, "n_edits": n, "seed": seed, "relations": group, "sample": "shuffled"}
            for pair in pairs
            for group in ((pair[0],), (pair[1],), pair)
            for n in (24, 130, 700)
            for seed in range(3)
            for one in (unedited, memit)
        ],
        "weight-decay": lambda: [
            {**one, "n_edits": 1000}
            for one in (
                unedited,
                *vary("ft-w", {}, "weight_decay", [0.0, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2]),
            )
        ],
        "layers": lambda: [
            {**one, "n_edits": n}
            for n in (100, 1000)
            for one in (
                unedited,
                *vary(
                    "memit",
                    memit_config,
                    "critical_layers",
                    [
                        [0, 1, 2, 3, 4, 5],
                        [3, 4, 5, 6, 7, 8],
                        [22, 23, 24, 25, 26, 27],
                        [8],
                        [7, 8],
                        [3, 5, 8],
                    ],
                ),
            )
        ],
        "attention": lambda: [
            {**one, "n_edits": n}
            for n in (32, 100, 316, 1000)
            for one in (unedited, *vary("memit", memit_config, "module", ["mlp", "attention"]))
        ],
        "lambda": lambda: [
            {**one, "n_edits": n}
            for n in (100, 1000)
            for one in (
                unedited,
                *vary(
                    "memit",
                    memit_config,
                    "preservation_weight",
                    [150.0, 450.0, 1500.0, 4500.0, 15000.0, 45000.0, 150000.0, 450000.0, 1.5e6],
                ),
            )
        ],
        "demonstrations": lambda: [
            {**one, "n_edits": 20, "relations": group}
            for group in ((), *relations[:4])
            for one in (unedited, memit)
        ],
    }[name]()


def imagine(trial: TrialDescription, n_cases: int) -> dict[str, list[float]]:
    """Numbers of a trial; the same for the same trial, and correlated between editors."""
    generator = np.random.default_rng(int(trial.hash, 16))
    hardness = np.random.default_rng(trial.seed).random(n_cases)
    efficacy, paraphrase, specificity, perplexity = {
        "unedited": (0.12, 0.15, 0.84, 22.0),
        "ft-w": (0.97, 0.55, 0.60, 30.0),
        "mend": (0.80, 0.55, 0.62, 60.0),
        "rome": (0.98, 0.96, 0.75, 25.0),
        "memit": (0.99, 0.90, 0.76, 24.0),
    }[trial.editor]
    decades = np.log10(trial.n_edits)
    loss = {"unedited": 0.0, "ft-w": 0.04, "mend": 0.2, "rome": 0.16, "memit": 0.01}[trial.editor]
    # Some relations and settings are harder than others.
    loss = loss * decades + 0.12 * generator.random() * (trial.editor != "unedited")
    rate = {
        "efficacy": max(0.02, efficacy - loss),
        "paraphrase": max(0.02, paraphrase - loss),
        "neighborhood": max(0.02, specificity - loss / 2),
    }
    numbers: dict[str, list[float]] = {}
    for family, factor in (("success", 1.0), ("accuracy", 0.8)):
        for kind, mean in rate.items():
            passes = hardness * 0.5 + generator.random(n_cases) * 0.5 < factor * mean
            numbers[f"{kind}_{family}"] = list(100.0 * passes)
    damage = np.exp(6 * loss)
    numbers["generation_entropy"] = list(620 - 150 * loss + 20 * generator.standard_normal(n_cases))
    numbers["reference_score"] = list(40 - 20 * loss + 5 * generator.standard_normal(n_cases))
    numbers["perplexity"] = list(perplexity * damage * np.exp(0.3 * generator.random(n_cases)))
    return numbers
