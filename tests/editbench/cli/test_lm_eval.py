"""``editbench run --lm-eval-task``: before and after an edit, going on, and what is refused."""

import json
import sys

import pytest

from editbench.plugins.atlas import AtlasDataset

pytest.importorskip("lm_eval", reason="needs the extra editbench[lm-eval]")

N_DOCUMENTS = 8
TASK = {
    "task": "facts_kept",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": "facts_kept.jsonl"},
    "test_split": "train",
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "choices",
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1},
}


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with a task on Atlas's first facts, of each the true object and the new one."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "tasks"
    folder.mkdir()
    documents = [
        {"prompt": case.request.text, "choices": [case.target_true, case.request.target]}
        for case in AtlasDataset(None, None).cases()[:N_DOCUMENTS]
    ]
    (folder / "facts_kept.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
    (folder / "facts_kept.yaml").write_text(json.dumps(TASK))
    return folder


@pytest.fixture
def run(invoke, tasks):
    def run(*arguments):
        return invoke(
            "run", "--n-edits", 1, "--lm-eval-folder", tasks, "--lm-eval-task", "facts_kept",
            *arguments, "--quiet",
        )  # fmt: skip

    return run


def test_an_edit_flips_its_document_and_no_other(run, invoke, tmp_path, capfd):
    result = run("--metrics", "lm-eval", "--out", "here")
    assert result.exit_code == 0, result.output
    assert (result.stderr, capfd.readouterr()) == ("", ("", ""))
    values = {}
    for path in (tmp_path / "here").glob("trials/*/rows.jsonl"):
        for row in map(json.loads, path.read_text().splitlines()):
            assert row["metric"] == "lm_eval/facts_kept/acc"
            values.setdefault(row["editor"], {})[row["case_id"]] = row["value"]
    units = [f"facts_kept-{number:05d}" for number in range(N_DOCUMENTS)]
    assert values["unedited"] == dict.fromkeys(units, 100.0)
    assert values["memit"] == {**dict.fromkeys(units, 100.0), units[0]: 0.0}
    (line,) = (
        line for line in result.stdout.splitlines() if "facts_kept/acc" in line and "memit" in line
    )
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    # Of eight, one differs: 87.5, with a standard error of 100 · √(7/(8·8·7)) = 12.5.
    assert cells[2:5] == ["100.0 ± 0.0", "87.5 ± 12.5", "−12.5"]
    assert cells[-3:] == ["8", "1", "within the noise"]
    manifest = json.loads((tmp_path / "here/run.json").read_text())
    (settings,) = {
        json.dumps(trial["metric_settings"]): trial["metric_settings"]
        for trial in manifest["trials"].values()
    }.values()
    (task,) = settings["lm-eval"]["tasks"].values()
    assert (task["version"], task["num_fewshot"], task["n_documents"]) == ("1", 0, N_DOCUMENTS)
    # It goes on with these settings, and refuses others.
    result = run("--metrics", "lm-eval", "--out", "here", "--resume")
    assert result.exit_code == 0, result.output
    result = run("--metrics", "lm-eval", "--lm-eval-limit", 4, "--out", "here", "--resume")
    assert result.exit_code == 2
    assert "metric_settings.lm-eval.limit: got 4; expected null" in result.stderr
    for output, says in (("markdown", "within the noise"), ("latex", "within the noise")):
        assert says in invoke("report", "here", "--format", output).stdout
    invoke("report", "here", "--html", "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "General ability, before and after" in page
    assert "within the noise" in page
    lines = json.loads(invoke("report", "here", "--format", "json").stdout)
    about = {"model": "atlas", "dataset": "atlas", "n_edits": 1, "seed": 0, "n": N_DOCUMENTS}
    assert {line["editor"]: line["value"] for line in lines} == {"unedited": 100.0, "memit": 87.5}
    for line in lines:
        assert line["metric"] == "lm_eval/facts_kept/acc"
        assert {name: line[name] for name in about} == about
        assert line["ci_low"] <= line["value"] <= line["ci_high"]
        assert "standard_error" not in line
    lines = json.loads(invoke("report", "here", "--compare", "unedited", "--format", "json").stdout)
    assert [(line["difference"], line["better"]) for line in lines] == [(-12.5, None)]


def test_tasks_come_besides_other_metrics(run):
    result = run("--editor", "unedited", "--metrics", "accuracy", "--out", "here")
    assert result.exit_code == 0, result.output
    assert "EA ↑" in result.stdout
    assert "lm_eval/facts_kept/acc ↑" in result.stdout
    assert "before and after" not in result.stdout  # nothing was edited


def test_a_plan_says_that_it_does_not_count_them(run):
    result = run("--metrics", "accuracy", "--plan")
    assert result.exit_code == 0, result.output
    assert "8 documents, whose cost is not estimated" in " ".join(result.stdout.split())
    assert "Stages marked ? are left out of the sums." in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--metrics", "accuracy,lm-eval"], "'lm-eval' of which tasks? Name them with"),
        (["--lm-eval-limit", 5], "--lm-eval-limit: of which tasks? Got 5 and no --lm-eval-task"),
        (["--lm-eval-task", "t", "--lm-eval-folder", "nowhere"], "no such folder of tasks, got"),
        (["--lm-eval-task", "nowhere.yaml"], "no such file of a task, got 'nowhere.yaml'"),
    ],
)
def test_refused(refuses, arguments, says):
    refuses("run", *arguments, says=says)


def test_a_missing_extra_is_said_before_anything_is_done(refuses, tasks, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    refuses("run", "--lm-eval-task", "arc_easy", says="pip install 'editbench[lm-eval]'")
