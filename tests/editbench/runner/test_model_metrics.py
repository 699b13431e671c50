"""Metrics that are given the model itself: what they measure, when, and how often."""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.editbench.runner.toys import make_grid, random_update

from editbench.cli.plan import work_of_trials
from editbench.errors import ConfigError
from editbench.metrics.base import ModelMetric, RowKind
from editbench.metrics.probes import Success
from editbench.models.editable import EditableModel
from editbench.results.before_after import BeforeAfter
from editbench.results.collection import collect
from editbench.results.comparison import Difference
from editbench.results.report import Summary, summarize
from editbench.results.tables.before_after_table import tabulate_before_after
from editbench.runner import StopRule, prepare_run, run_grid

N_ROWS = 16


class RowNorms(ModelMetric):
    """The norms of the first rows of a weight, which the editor of the tests adds to."""

    name: ClassVar[str] = "row-norms"
    produces: ClassVar[tuple[str, ...]] = ("norm",)
    bounds: ClassVar[tuple[float, float]] = (0.0, float("inf"))

    def __init__(self, n_rows: int = N_ROWS, unit: float = 1.0) -> None:
        self.n_rows, self.unit = n_rows, unit
        self.asked: list[tuple[str, ...]] = []

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"unit": self.unit} if self.unit != 1.0 else {}

    def units(self) -> Sequence[str]:
        return [f"row-{index:02d}" for index in range(self.n_rows)]

    def measure(
        self, model: EditableModel, units: Sequence[str], on_progress: Callable[[int, int], None]
    ) -> Mapping[str, Mapping[str, float]]:
        self.asked.append(tuple(units))
        on_progress(0, len(units))
        path = model.architecture.weight_name(model.architecture.mlp_projections[0])
        norms = model.model.get_parameter(path).norm(dim=1).tolist()
        return {unit: {"norm": norms[int(unit[-2:])] / self.unit} for unit in units}


def values_of(folder: Path, editor: str) -> dict[str, float]:
    rows = [
        json.loads(line)
        for path in folder.glob("trials/*/rows.jsonl")
        for line in path.read_text().splitlines()
    ]
    return {row["case_id"]: row["value"] for row in rows if row["editor"] == editor}


def lines_of(summary: Summary, editor: str) -> dict[int, float]:
    return {line.checkpoint: line.value for line in summary.lines if line.editor == editor}


def test_the_model_is_measured_before_and_after(model, tmp_path):
    metric = RowNorms()
    summary = run_grid(make_grid(model, random_update(), metrics=[metric]), tmp_path / "run")
    assert not summary.failures
    before, after = (values_of(tmp_path / "run", name) for name in ("unedited", "random"))
    path = model.architecture.weight_name(model.architecture.mlp_projections[0])
    norms = model.model.get_parameter(path).norm(dim=1).tolist()
    assert before == {f"row-{index:02d}": norms[index] for index in range(N_ROWS)}
    assert set(after) == set(before)
    assert all(after[unit] != before[unit] for unit in before)
    assert model.state == model.fingerprint


def test_batches_share_its_documents(model, tmp_path):
    metric = RowNorms()
    trials = make_grid(model, metrics=[metric, Success()], n_batches=lambda n: 3)
    run_grid(trials, tmp_path / "run")
    assert sorted(unit for units in metric.asked for unit in units) == metric.units()
    assert [len(units) for units in metric.asked] == [6, 5, 5]


@pytest.mark.parametrize("keeps", [True, False])
def test_the_unedited_model_is_measured_once(model, tmp_path, keeps):
    metric = RowNorms()
    grid = {"metrics": [metric], "seeds": [0, 1], "n_edits": [2, 4]}
    trials = make_grid(model, random_update(), random_update(0.0), **grid)  # one changes nothing
    cache = tmp_path / "cache" if keeps else None
    run_grid(trials, tmp_path / "run", cache=cache)
    assert len(metric.asked) == 1 + 4
    run_grid(trials[:1], tmp_path / "again", cache=cache)
    assert len(metric.asked) == (5 if keeps else 6)
    assert values_of(tmp_path / "again", "unedited") == values_of(tmp_path / "run", "unedited")


def test_a_damaged_measurement_is_made_anew(model, tmp_path):
    metric, cache = RowNorms(), tmp_path / "cache"
    trials = make_grid(model, metrics=[metric])
    run_grid(trials, tmp_path / "run", cache=cache)
    (path,) = (cache / "measurements").iterdir()
    path.write_bytes(path.read_bytes()[:20])
    summary = run_grid(trials, tmp_path / "again", cache=cache)
    assert "measurements of the unedited model" in summary.warnings[0]
    assert len(metric.asked) == 2


def test_a_run_goes_on_with_the_same_settings_alone(model, tmp_path):
    def trials(metric: RowNorms):
        return make_grid(model, random_update(), metrics=[metric])

    plain, other = trials(RowNorms()), trials(RowNorms(unit=2.0))
    assert {each.hash for each in plain}.isdisjoint(each.hash for each in other)
    run_grid(plain, tmp_path / "run")
    again = RowNorms()
    summary = run_grid(trials(again), tmp_path / "run", resume=True)
    assert (summary.n_run, summary.n_skipped, again.asked) == (0, 2, [])
    with pytest.raises(Exception, match=r"metric_settings\.row-norms\.unit: got 2\.0; expected"):
        run_grid(other, tmp_path / "run", resume=True)


def test_without_settings_trials_keep_their_addresses(model):
    trial = make_grid(model)[0]
    assert trial.description.metric_settings == {}
    with_some = trial.description.model_copy(update={"metric_settings": {"success": {"a": 1}}})
    assert with_some.hash != trial.hash


def test_streams_measure_at_checkpoints(model, tmp_path):
    metric = RowNorms()
    trials = make_grid(
        model, random_update(), metrics=[metric], batch_size=2, checkpoints=lambda n: [2]
    )
    run_grid(trials, tmp_path / "run")
    summary = summarize([tmp_path / "run"])
    unedited, edited = (lines_of(summary, name) for name in ("unedited", "random"))
    assert list(unedited) == list(edited) == [2, 4]
    assert unedited[2] == unedited[4]
    assert edited[2] != edited[4]


def test_a_stream_stops_by_a_measurement_of_the_unedited_model(model, tmp_path):
    rule = StopRule.parse("norm>1.0001x")
    trials = make_grid(
        model,
        random_update(0.5),
        metrics=[RowNorms()],
        batch_size=2,
        checkpoints=lambda n: [2],
        stop_when=rule,
    )
    summary = run_grid(trials, tmp_path / "run")
    assert [reason.split(":")[0] for _, reason in summary.stopped] == ["after 2 of 4 facts"]


class Wrong(RowNorms):
    def __init__(self, found: Mapping[str, Mapping[str, float]]) -> None:
        super().__init__()
        self.found = found

    def measure(self, model, units, on_progress):
        return self.found


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"row-00": {"height": 1.0}}, "got 1.0 for 'height'; expected a finite number for one of"),
        ({"row-00": {"norm": float("nan")}}, "got nan for 'norm'"),
        ({"row-99": {"norm": 1.0}}, "unit 'row-99': got a unit that it was not asked for"),
    ],
)
def test_what_is_wrong_fails_the_trial(model, tmp_path, found, says):
    summary = run_grid(make_grid(model, metrics=[Wrong(found)]), tmp_path / "run")
    assert says in summary.failures[0][1]


def test_without_documents_there_is_nothing_to_ask(model):
    with pytest.raises(ConfigError, match=r"'row-norms': has nothing to ask .* no documents"):
        prepare_run(make_grid(model, metrics=[RowNorms(0)]))


def test_a_plan_names_it_and_does_not_count_it(model):
    run = prepare_run(make_grid(model, random_update(), metrics=[RowNorms()]))
    for work in work_of_trials(run, None):
        (stage,) = (stage for stage in work.stages if stage.name == "row-norms")
        assert not stage.is_known
        assert stage.chunks == "16 documents, whose cost is not estimated"


class TwoKinds(RowNorms):
    """Norms, and their inverses: larger ones are better, by the geometric mean."""

    @property
    def rows(self) -> tuple[RowKind, ...]:
        bounds = (0.0, float("inf"))
        return RowKind("norm", "arithmetic", bounds, False), RowKind("size", "geometric", bounds)

    def measure(self, model, units, on_progress):
        found = super().measure(model, units, on_progress)
        return {unit: {**own, "size": 1 / own["norm"]} for unit, own in found.items()}


def test_rows_of_different_kinds_are_described_apart(model, tmp_path):
    run_grid(make_grid(model, random_update(), metrics=[TwoKinds()]), tmp_path / "run")
    described = collect([tmp_path / "run"]).distinct_metrics
    assert [(each.produces, each.mean, each.higher_is_better) for each in described] == [
        (("norm",), "arithmetic", False),
        (("size",), "geometric", True),
    ]
    assert all(each.of_model for each in described)
    (norm, size) = summarize([tmp_path / "run"]).before_after
    assert (norm.difference.metric, size.difference.metric) == ("norm", "size")
    assert norm.n_changed == size.n_changed == N_ROWS
    sizes = [
        value
        for line in next((tmp_path / "run/trials").glob(f"{size.difference.trial}/rows.jsonl"))
        .read_text()
        .splitlines()
        if json.loads(line)["metric"] == "size"
        for value in [json.loads(line)["value"]]
    ]
    mean = statistics.geometric_mean(sizes)
    assert size.difference.value == pytest.approx(mean)
    spread = statistics.stdev(map(math.log, sizes))
    assert size.error == pytest.approx(mean * spread / N_ROWS**0.5)


class Given(RowNorms):
    """What a test says each document comes to, before and after."""

    def __init__(self, before: Sequence[float], after: Sequence[float]) -> None:
        super().__init__(len(before))
        self.values = {True: before, False: after}

    def measure(self, model, units, on_progress):
        values = self.values[model.state == model.fingerprint]
        return {unit: {"norm": values[int(unit[-2:])]} for unit in units}


def compare(model, folder, before, after) -> BeforeAfter:
    run_grid(make_grid(model, random_update(), metrics=[Given(before, after)]), folder)
    (found,) = summarize([folder]).before_after
    return found


def test_before_and_after_worked_by_hand(model, tmp_path):
    """Of ten documents, three are right before, one of these and another one after."""
    before, after = [100.0] * 3 + [0.0] * 7, [100.0] + [0.0] * 2 + [100.0] + [0.0] * 6
    found = compare(model, tmp_path / "run", before, after)
    difference: Difference = found.difference
    assert (difference.baseline_value, difference.value, difference.difference) == (30, 20, -10)
    # Sample variance 100² · k(n − k) / (n (n − 1)); its root over √n: 15.28 and 13.33.
    assert found.error_before == pytest.approx(100 * (3 * 7 / 90 / 10) ** 0.5)
    assert found.error == pytest.approx(100 * (2 * 8 / 90 / 10) ** 0.5)
    assert (found.n_changed, found.verdict) == (3, "within the noise")


@pytest.mark.parametrize(
    ("n_worse", "verdict"), [(0, "unchanged"), (5, "within the noise"), (6, "worse")]
)
def test_few_documents_do_not_tell(model, tmp_path, n_worse, verdict):
    """With five the bootstrap alone would be sure, and a sign test would not."""
    found = compare(
        model, tmp_path / "run", [100.0] * 10, [0.0] * n_worse + [100.0] * (10 - n_worse)
    )
    assert (found.n_changed, found.verdict) == (n_worse, verdict)
    assert (found.difference.better == "unedited") is (n_worse > 4)
    (row,) = tabulate_before_after([found], ()).sections[0]
    assert row[-1].text == verdict
    assert any(cell.bold for cell in row) is (verdict == "worse")


def test_better_is_said_too(model, tmp_path):
    assert compare(model, tmp_path / "run", [0.0] * 10, [100.0] * 9 + [0.0]).verdict == "better"


def test_one_document_is_within_the_noise(model, tmp_path):
    found = compare(model, tmp_path / "run", [0.0], [100.0])
    assert (found.error, found.verdict) == (None, "within the noise")


def test_other_settings_are_not_compared(model, tmp_path):
    for n_edits in (2, 4):
        trials = make_grid(model, random_update(), metrics=[RowNorms()], n_edits=[n_edits])
        run_grid(trials[n_edits // 4 :][:1], tmp_path / str(n_edits))
    assert summarize([tmp_path / "2", tmp_path / "4"]).before_after == ()
