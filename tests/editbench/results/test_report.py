import csv
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from editbench.errors import RunError
from editbench.results.frame import load_rows
from editbench.results.report import Summary, summarize, write_csv, write_json
from editbench.results.row import FIELDS
from editbench.results.store import RunStore
from editbench.results.tables.summary_table import tabulate_summary
from editbench.results.tables.terminal import draw_table

CONTRACT = {
    "editor", "model", "dataset", "n_edits", "seed", "metric", "value", "ci_low", "ci_high", "n",
}  # fmt: skip


@pytest.fixture
def run(tmp_path, plan, describe, record, rows, failed_row) -> Path:
    """An unedited model, two variants of MEMIT, one failure, one trial that has not been run."""
    unedited = describe(editor="unedited", config={})
    strong, weak = describe(config={"n_steps": 20}), describe(config={"n_steps": 5})
    broken, missing = describe(editor="broken", config={}), describe(editor="slow", config={})
    folder = tmp_path / "run"
    with RunStore.open(
        folder, plan(unedited, strong, weak, broken, missing), resume=False
    ) as store:
        for trial, efficacy, neighborhood, perplexity in (
            (unedited, [0, 0, 100, 0], [100, 100, 100, None], [20, 20, 20, 20]),
            (strong, [100, 100, 100, 100], [50, 100, 100, None], [40, 50, 60, 50]),
            (weak, [0, 100, 100, 0], [100, 50, 100, None], [20, 22, 24, 22]),
        ):
            store.write(
                record(trial),
                rows(
                    trial,
                    {
                        "efficacy_success": efficacy,
                        "neighborhood_success": neighborhood,
                        "perplexity": perplexity,
                    },
                ),
            )
        message = "RuntimeError: out of luck"
        store.write(record(broken, "error", message=message), [failed_row(broken, message)])
    return folder


def draw(summary: Summary) -> str:
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        console.print(draw_table(tabulate_summary(summary)))
    return capture.get()


def test_rows_become_one_tidy_table(run):
    frame = load_rows([run])
    assert tuple(frame.columns) == FIELDS
    assert len(frame) == 3 * (4 + 3 + 4) + 1
    assert list(frame["status"].unique()) == ["ok", "error"]
    failed = frame[frame["status"] == "error"].iloc[0]
    assert failed["message"] == "RuntimeError: out of luck"
    assert math.isnan(failed["value"])


def test_a_trial_in_two_runs_is_read_once(run):
    assert len(load_rows([run, run])) == len(load_rows([run]))
    assert summarize([run, run]) == summarize([run])


def test_a_run_without_rows_is_an_empty_table(tmp_path, plan, describe):
    with RunStore.open(tmp_path, plan(describe()), resume=False):
        pass
    assert len(load_rows([tmp_path])) == 0
    summary = summarize([tmp_path])
    assert (summary.lines, summary.n_missing) == ((), 1)
    assert json.loads(write_json(summary)) == []
    assert "1 trial(s) have not been run yet" in draw(summary)


def test_means_intervals_and_scores(run):
    summary = summarize([run])
    lines = {(line.editor, line.variant, line.metric): line for line in summary.lines}
    line = lines["memit", "n_steps=5", "efficacy_success"]
    # Standard deviation of 0, 100, 100, 0: 57.735; 1.96 · 57.735 / 2 = 56.58, cut to 0 … 100.
    assert (line.value, line.ci_low, line.ci_high, line.n) == (50, 0, 100, 4)
    line = lines["memit", "n_steps=20", "neighborhood_success"]
    assert (line.value, line.n) == (pytest.approx(250 / 3), 3)
    assert line.ci_low == pytest.approx(250 / 3 - 1.96 * math.sqrt(2500 / 3) / math.sqrt(3))
    score = lines["memit", "n_steps=20", "score"]
    assert score.value == pytest.approx(2 / (1 / 100 + 3 / 250))
    assert score.ci_low < score.value < score.ci_high <= 100
    # What is no rate has no ceiling.
    assert lines["memit", "n_steps=20", "perplexity"].ci_high > 50
    assert lines["unedited", "", "score"].value == pytest.approx(2 / (1 / 25 + 1 / 100))
    assert summary.n_missing == 1
    assert [trial.description.editor for trial in summary.failed] == ["broken"]


def test_json_has_the_keys_of_the_contract(run):
    objects = json.loads(write_json(summarize([run])))
    assert all(set(found) >= CONTRACT for found in objects)
    unedited = {found["metric"] for found in objects if found["editor"] == "unedited"}
    assert unedited == {"efficacy_success", "neighborhood_success", "score", "perplexity"}


def test_one_case_has_no_interval(tmp_path, plan, describe, record, rows):
    trial = describe(n_edits=1)
    values = {"efficacy_success": [100], "neighborhood_success": [50]}
    with RunStore.open(tmp_path, plan(trial), resume=False) as store:
        store.write(record(trial), rows(trial, values))
    summary = summarize([tmp_path])
    for found in json.loads(write_json(summary)):
        assert found["ci_low"] is None
        assert found["ci_high"] is None
        assert found["n"] == 1
    reader = csv.DictReader(io.StringIO(write_csv(summary)))
    assert {row["ci_low"] for row in reader} == {""}
    assert "±" not in draw(summary).splitlines()[-3]


def test_csv_holds_the_same_as_json(run):
    summary = summarize([run])
    rows = list(csv.DictReader(io.StringIO(write_csv(summary))))
    objects = json.loads(write_json(summary))
    assert [row["metric"] for row in rows] == [found["metric"] for found in objects]
    assert [float(row["value"]) for row in rows] == [found["value"] for found in objects]


def test_the_table_has_editors_as_rows_and_metrics_as_columns(run):
    table = draw(summarize([run]))
    assert "model gpt2, dataset toy, edits 2, seed 0" in table
    rows = [line for line in table.splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == [
        "unedited",
        "memit (n_steps=20)",
        "memit (n_steps=5)",
    ]
    assert "100.0 ± 0.0" in rows[1]
    assert "broken on gpt2, toy, 2 edits, seed 0 failed: RuntimeError: out of luck" in table
    assert "1 trial(s) have not been run yet" in table


def test_the_best_number_of_a_metric_is_bold(run):
    console = Console(width=200, force_terminal=True, color_system="truecolor")
    with console.capture() as capture:
        console.print(draw_table(tabulate_summary(summarize([run]))))
    table = capture.get()
    bold = [part.split("\x1b[0m")[0] for part in table.split("\x1b[1m")[1:]]
    # Efficacy and score of the strong variant, neighborhood of both, and (the lower the better)
    # perplexity of the weak one; the unedited model, whose perplexity is 20.0, does not compete.
    assert {"100.0", "90.9", "83.3", "22.00"} <= set(bold)
    assert not {"20.0", "50.0"} & set(bold)


def test_settings_that_differ_become_columns(tmp_path, plan, describe, record, rows):
    trials = [describe(n_edits=n, seed=seed) for n in (1, 10) for seed in (0, 1)]
    with RunStore.open(tmp_path, plan(*trials), resume=False) as store:
        for trial in trials:
            store.write(record(trial), rows(trial, {"efficacy_success": [100, 0]}))
    table = draw(summarize([tmp_path]))
    assert "model gpt2, dataset toy" in table
    assert "edits 10" not in table
    rows_drawn = [line.split("│")[1:3] for line in table.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows_drawn] == [
        ["1", "0"], ["1", "1"], ["10", "0"], ["10", "1"],
    ]  # fmt: skip


def test_an_editor_that_changed_nothing_is_marked(tmp_path, plan, describe, record, rows):
    trial = describe()
    with RunStore.open(tmp_path, plan(trial), resume=False) as store:
        store.write(record(trial, "no_effect"), rows(trial, {"efficacy_success": [0]}, "no_effect"))
    summary = summarize([tmp_path])
    assert summary.lines[0].status == "no_effect"
    assert "memit changed nothing" in draw(summary)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        summarize([tmp_path])
