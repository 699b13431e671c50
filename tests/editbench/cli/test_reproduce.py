"""``editbench reproduce``: an experiment from its name to a run folder with figures."""

import json

import pytest

from editbench.plugins import PluginManager
from editbench.results.manifest import RunManifest


@pytest.fixture
def small(model_folder, facts_file, moments_file):
    options = ["--model", model_folder, "--dataset", f"facts={facts_file}"]
    return [*options, "--second-moments", moments_file]


MEMIT = ["--set", "memit.n_steps=3", "--set", "memit.n_context_prefixes=1"]


def manifest_of(folder):
    return RunManifest.model_validate_json((folder / "run.json").read_bytes())


def test_an_experiment_is_a_run_with_a_figure(invoke, small, tmp_path):
    result = invoke("reproduce", "lambda", *small, *MEMIT, "--max-edits", 2, "--out", "here")
    assert result.exit_code == 0, result.output
    manifest = manifest_of(tmp_path / "here")
    assert manifest.provenance["experiment"] == "lambda"
    weights = {t.config.get("preservation_weight") for t in manifest.trials.values()}
    assert len(weights - {None}) == 9
    for kind in ("png", "svg"):
        assert list((tmp_path / "here" / "figures").glob(f"*.{kind}"))
    report = invoke("report", "here", "--format", "json")
    lines = json.loads(report.stdout)
    assert {line["editor"] for line in lines} == {"memit", "unedited"}


def test_it_goes_on_where_it_was(invoke, small, tmp_path):
    options = ["reproduce", "lambda", *small, *MEMIT, "--max-edits", 1, "--out", "here"]
    assert invoke(*options).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("here/trials/*/rows.jsonl")}
    again = invoke(*options, "--resume")
    assert again.exit_code == 0
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("here/trials/*/rows.jsonl")}
    assert after == before


def test_an_editor_that_the_model_cannot_have_is_left_out(invoke, small, tmp_path):
    result = invoke("reproduce", "table1", *small, "--max-edits", 1, "--out", "here")
    assert result.exit_code == 0, result.output
    assert "Without mend: " in result.stdout
    assert "editbench train mend" in result.stdout
    editors = {trial.editor for trial in manifest_of(tmp_path / "here").trials.values()}
    assert editors == {"unedited", "ft-w", "rome", "memit"}


def test_an_editor_that_was_asked_for_and_cannot_be_had_is_an_error(refuses, small):
    refuses(
        "reproduce", "table1", *small, "--editor", "mend", says="no trained hypernetwork is known"
    )


def test_other_editors_other_metrics_and_text_of_ones_own(invoke, small, corpus_file, tmp_path):
    without = ["reproduce", "table2", *small, "--metrics", "success,perplexity", "--plan"]
    assert "'perplexity' has nothing to ask about 'facts': left out" in invoke(*without).stdout
    emmet = [option.replace("memit", "emmet") for option in MEMIT]
    measured = ["--metrics", "success,perplexity", "--held-out-text", corpus_file]
    options = [*small, *emmet, "--editor", "emmet", *measured, "--max-edits", 2, "--out", "here"]
    assert invoke("reproduce", "table2", *options).exit_code == 0
    manifest = manifest_of(tmp_path / "here")
    assert {trial.editor for trial in manifest.trials.values()} == {"unedited", "emmet"}
    lines = json.loads(invoke("report", "here", "--format", "json").stdout)
    assert {line["metric"] for line in lines} > {"efficacy_success", "perplexity"}
    assert "efficacy_accuracy" not in {line["metric"] for line in lines}


def test_a_plan_computes_nothing(invoke, small, tmp_path):
    options = ["reproduce", "lambda", *small, *MEMIT, "--max-edits", 2, "--out", "here"]
    planned = invoke(*options, "--plan")
    assert planned.exit_code == 0, planned.output
    assert planned.stdout.count(", seed 0\n") == 10  # the unedited model is one
    assert "target hidden states" in planned.stdout
    assert not (tmp_path / "here").exists()
    assert invoke(*options).exit_code == 0
    assert "Nothing" in invoke(*options, "--plan", "--resume").stdout


def test_what_is_wrong_is_said_before_anything_is_done(refuses, small):
    refuses("reproduce", "tabel2", *small, "--out", "here", says="Did you mean 'table2'?")
    refuses("reproduce", "scaling", *small, "--resume", says="Name its folder with --out DIR")
    refuses("reproduce", "lambda", *small, "--editor", "rome", says="varies the settings of memit")
    refuses("reproduce", "table2", *small, "--editor", "romee", says="Did you mean 'rome'?")
    refuses("reproduce", "table2", *small, "--metrics", "sucess", says="Did you mean 'success'?")
    two = ["--set", "memit.n_steps=3", "--set", "memit.n_steps=4"]
    refuses("reproduce", "lambda", *small, *two, "--out", "here", says="is given 2 settings")
    rome = ["--set", "rome.critical_layers=[1]"]
    refuses("reproduce", "lambda", *small, *rome, "--out", "here", says="not part of this")
    refuses("reproduce", "mixing", *small, "--out", "here", says="no pair of relations is known")


@pytest.mark.thorough
def test_lifelong_has_every_editor_that_can_be_had(
    invoke, model_folder, facts_file, corpus_file, tmp_path
):
    options = ["--model", model_folder, "--dataset", f"facts={facts_file}", "--corpus", corpus_file]
    names = [each for each in PluginManager().editors() if each not in ("unedited", "mend")]
    for name in names:
        fields = PluginManager().get_editor(name).config_type.model_fields
        quick = {"n_steps": 2, "n_context_prefixes": 1, "second_moment_tokens": 2000, "n_epochs": 1}
        for field in quick.keys() & fields.keys():
            options += ["--set", f"{name}.{field}={quick[field]}"]
    result = invoke("reproduce", "lifelong", *options, "--max-edits", 2, "--out", "here")
    assert result.exit_code == 0, result.output
    trials = manifest_of(tmp_path / "here").trials.values()
    assert {(trial.editor, trial.seed) for trial in trials} == {
        (name, seed) for name in ("unedited", *names) for seed in (0, 1, 2)
    }
    assert {(trial.batch_size, trial.checkpoints) for trial in trials} == {(1, (1, 2))}
    lines = json.loads(invoke("report", "here", "--format", "json").stdout)
    assert {line["editor"] for line in lines} == {"unedited", *names}
    assert (tmp_path / "here" / "figures" / "lifelong_retention.csv").exists()
