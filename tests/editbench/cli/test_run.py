"""``editbench run`` and ``report``: a grid from options to rows, and going on with it."""

import csv
import io
import json
import shutil

import click
import pytest

from editbench.editors.unedited import Unedited
from editbench.plugins import hookimpl
from editbench.testing import tiny_tokenizer


@pytest.fixture
def on_facts(model_folder, facts_file):
    return ["--model", model_folder, "--dataset", f"facts={facts_file}"]


@pytest.fixture
def nudge(invoke, on_facts, nudging):
    """Runs the quick editor 'nudge' on the facts."""

    def run(*arguments, plugins=()):
        return invoke(
            "run", "--editor", "nudge", *on_facts, *arguments, plugins=[nudging, *plugins]
        )

    return run


def read_json(invoke, folder):
    result = invoke("report", folder, "--format", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_run_ends_with_the_table_and_the_folder(invoke, on_facts, memit_options):
    result = invoke("run", *on_facts, *memit_options, "--out", "here")
    assert result.exit_code == 0, result.output
    first, second, *lines, last = result.stdout.splitlines()
    assert first.startswith("Settings of memit on ")
    assert "derived from 4 layers" in first
    assert second == "Run folder: here (2 trials)"
    assert last == "Results: here"
    assert any("memit" in line and "±" in line for line in lines)
    assert any("unedited" in line and "±" in line for line in lines)
    assert result.stderr == ""


@pytest.mark.parametrize("options", [["--out", "here"], ["--plan"]])
def test_cases_are_chosen_once(nudge, monkeypatch, options):
    """What is said of a run's cost is said of the very cases and questions that are run."""
    from editbench.runner import prepare

    chosen, choose = [], prepare.select_batches

    def count(*arguments, **more):
        chosen.append(choose(*arguments, **more))
        return chosen[-1]

    monkeypatch.setattr(prepare, "select_batches", count)
    result = nudge("--seed", 0, "--seed", 1, *options)
    assert result.exit_code == 0, result.output
    assert len(chosen) == 1


def test_the_text_of_second_moments_is_spoken_of_where_they_are_needed(invoke, nudge, on_facts):
    assert "embedded text" not in nudge("--plan").output
    assert "embedded text 'prose'" in invoke("run", *on_facts, "--plan").output


def test_report_has_what_the_contract_says(invoke, nudge):
    assert nudge("--out", "here", "--seed", 3).exit_code == 0
    lines = read_json(invoke, "here")
    assert {line["editor"] for line in lines} == {"nudge", "unedited"}
    metrics = ["efficacy_success", "paraphrase_success", "neighborhood_success", "score"]
    metrics += [name.replace("success", "accuracy") for name in metrics[:3]] + ["accuracy_score"]
    for editor in ("nudge", "unedited"):
        own = {line["metric"]: line for line in lines if line["editor"] == editor}
        assert list(own) == metrics
        for line in own.values():
            assert (line["n_edits"], line["seed"], line["n"], line["dataset"]) == (6, 3, 6, "facts")
            assert 0 <= line["ci_low"] <= line["value"] <= line["ci_high"] <= 100


def test_metrics_of_what_a_model_writes_and_reads(invoke):
    metrics = ["generation-entropy", "reference-score", "perplexity"]
    options = ["run", "--editor", "unedited", "--n-edits", 2, "--metrics", ",".join(metrics)]
    assert invoke(*options, "--out", "here").exit_code == 0
    lines = {line["metric"]: line for line in read_json(invoke, "here")}
    assert list(lines) == [name.replace("-", "_") for name in metrics]
    for line in lines.values():
        assert line["ci_low"] < line["value"] < line["ci_high"]
    assert [line["n"] for line in lines.values()][:2] == [2, 2]
    assert 300 < lines["generation_entropy"]["value"] < 1000
    assert 0 < lines["reference_score"]["value"] < 100
    assert 1 < lines["perplexity"]["value"] < 10  # of a model that knows the world well
    assert lines["perplexity"]["n"] > 100


def test_a_dataset_without_held_out_text_has_no_perplexity(refuses, on_facts):
    options = ["run", "--editor", "unedited", *on_facts, "--metrics", "perplexity"]
    refuses(
        *options,
        *("--out", "here"),
        says=["'perplexity'", "nothing to ask about dataset 'facts', got 0 held-out texts"],
    )


def test_report_as_csv_and_into_a_file(invoke, nudge, tmp_path):
    nudge("--out", "here")
    lines = read_json(invoke, "here")
    text = invoke("report", "here", "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["value"]) for row in rows] == [line["value"] for line in lines]
    result = invoke("report", "here", "--format", "csv", "--output", "table.csv")
    assert (result.exit_code, result.stdout) == (0, "")
    assert (tmp_path / "table.csv").read_text() == text
    invoke("report", "here", "--output", "table.txt")
    assert "nudge" in (tmp_path / "table.txt").read_text()


def test_every_repeated_option_spans_the_grid(invoke, nudge):
    result = nudge(
        "--out", "grid", "--n-edits", 2, "--n-edits", 3, "--seed", 0, "--seed", 1,
        "--set", "nudge.size=0.5", "--set", "nudge.size=0.6",
        "--metrics", "success", "--sample", "shuffled",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = [line for line in read_json(invoke, "grid") if line["metric"] == "score"]
    trials = {(each["editor"], each["n_edits"], each["seed"], each["variant"]) for each in lines}
    variants = {variant for editor, *_, variant in trials if editor == "nudge"}
    assert variants == {"size=0.5", "size=0.6"}
    assert len(trials) == len(lines) == 2 * 2 * (2 + 1)  # sizes × seeds × (settings + unedited)


def test_several_models_and_datasets_are_a_grid_too(
    invoke, on_facts, other_model_folder, facts_file, tmp_path
):
    zsre = [{"subject": "Ana", "src": "What does Ana do?", "rephrase": "Ana's job?",
             "answers": ["fish"], "loc": "nq question: who", "loc_ans": "Elif"}]  # fmt: skip
    (tmp_path / "zsre.json").write_text(json.dumps(zsre))
    result = invoke(
        "run", *on_facts, "--model", other_model_folder, "--dataset", "zsre=zsre.json",
        "--editor", "unedited", "--out", "here",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = read_json(invoke, "here")
    assert len({(line["model"], line["dataset"], line["n_edits"]) for line in lines}) == 4
    metrics = {line["metric"] for line in lines if line["dataset"] == "zsre"}
    assert "efficacy_accuracy" in metrics
    assert "efficacy_success" not in metrics  # zsRE's own metric is taken


def test_run_in_the_default_folder(invoke, nudge, tmp_path):
    result = nudge("--n-edits", 2)
    (folder,) = (tmp_path / "runs").iterdir()
    assert result.stdout.splitlines()[-1] == f"Results: runs/{folder.name}"
    assert {line["n_edits"] for line in read_json(invoke, folder)} == {2}


def test_folder_that_holds_a_run_is_refused(nudge, refuses, on_facts, nudging):
    few = ["--n-edits", 2, "--out", "here", "--metrics", "success"]
    nudge(*few)
    few = ["run", "--editor", "nudge", *on_facts, *few]
    refuses(*few, plugins=[nudging], says=["the folder holds a run already", "--resume"])
    other = ["--resume", "--seed", 1]
    refuses(*few, *other, plugins=[nudging], says=["another configuration", "seed: got 1"])


class FailsOnce(Unedited):
    """Raises in its first trial, and works in the next."""

    name = "fails-once"
    raises: type[BaseException] = ValueError

    def edit(self, model, requests, resources):
        if type(self).raises is not None:
            raised, type(self).raises = type(self).raises, None
            raise raised("on purpose")
        return super().edit(model, requests, resources)


class FailingPlugin:
    @hookimpl
    def editbench_register_editors(self):
        return [FailsOnce]


@pytest.fixture
def failing(make_plugin, monkeypatch):
    def make(error):
        monkeypatch.setattr(FailsOnce, "raises", error)
        return [make_plugin("failing", FailingPlugin())]

    return make


def test_a_failed_trial_is_reported_and_the_others_go_on(invoke, nudge, failing):
    options = ["--editor", "fails-once", "--out", "here"]
    plugins = failing(ValueError)
    result = nudge(*options, plugins=plugins)
    assert result.exit_code == 1
    assert "ValueError: on purpose" in result.stdout
    assert {line["editor"] for line in read_json(invoke, "here")} == {"unedited", "nudge"}
    result = nudge(*options, "--resume", plugins=plugins)
    assert result.exit_code == 0, result.output
    assert "fails-once" in {line["editor"] for line in read_json(invoke, "here")}


def test_interrupt_keeps_what_is_finished_and_says_so(invoke, nudge, failing):
    options = ["--editor", "fails-once", "--out", "here"]
    plugins = failing(KeyboardInterrupt)
    result = nudge(*options, plugins=plugins)
    assert result.exit_code == 130
    assert "Interrupted: 2 of 3 trials are finished and kept in here." in result.stderr
    assert "--resume" in result.stderr
    before = read_json(invoke, "here")
    assert {line["editor"] for line in before} == {"unedited", "nudge"}
    result = nudge(*options, "--resume", plugins=plugins)
    assert result.exit_code == 0, result.output
    after = read_json(invoke, "here")
    assert [line for line in after if line["editor"] != "fails-once"] == before


def test_interrupt_before_the_first_trial_leaves_nothing(nudge, monkeypatch, tmp_path):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("editbench.models.loading.load_model", interrupt)
    result = nudge("--out", "here")
    assert result.exit_code == 130
    assert "no run was begun" in result.stderr
    assert not (tmp_path / "here").exists()


def test_conflicts_are_printed(invoke, model_folder, facts_file, nudging, tmp_path):
    facts = facts_file.read_text().splitlines()
    contradiction = json.loads(facts[0]) | {"target": "astronaut", "case_id": "contradiction"}
    (tmp_path / "facts.jsonl").write_text("\n".join([*facts, json.dumps(contradiction)]))
    options = ["--editor", "nudge", "--model", model_folder, "--dataset", "facts=facts.jsonl"]
    options += ["--out", "here", "--on-conflict", "drop-all"]
    result = invoke("run", *options, plugins=[nudging])
    assert result.exit_code == 0, result.output
    assert "Conflicts in 'facts' (drop-all): 1 group(s)" in result.stdout
    assert "'astronaut' (contradiction)" in result.stdout
    assert {line["n_edits"] for line in read_json(invoke, "here")} == {5}


class Listener:
    def __init__(self):
        self.heard = []

    @hookimpl
    def editbench_trial_finished(self, trial, rows):
        self.heard.append((trial.editor.name, {row.metric for row in rows}))
        if trial.editor.name == "nudge":
            raise RuntimeError("deaf")


def test_plugins_hear_of_finished_trials(nudge, make_plugin):
    listener = Listener()
    options = ["--metrics", "success", "--out", "here"]
    result = nudge(*options, plugins=[make_plugin("listener", listener)])
    assert result.exit_code == 0
    assert [name for name, _ in listener.heard] == ["unedited", "nudge"]
    kinds = ("efficacy", "paraphrase", "neighborhood")
    assert listener.heard[0][1] == {f"{kind}_success" for kind in kinds}
    said = "Warning: plugin 'listener' failed: RuntimeError: deaf (in editbench_trial_finished())"
    assert said in result.stdout
    nudge(*options, "--resume", plugins=[make_plugin("listener", listener)])
    assert len(listener.heard) == 2  # skipped trials are old news


class Greeting:
    @hookimpl
    def editbench_register_commands(self, cli):
        @cli.command()
        def greet():
            """Say hello."""
            click.echo("hello")


class Usurper:
    @hookimpl
    def editbench_register_commands(self, cli):
        @cli.command()
        def greet_too():
            """Say hello too."""

        @cli.command("run")
        def usurp():
            """Something else entirely."""


def test_plugins_add_commands(invoke, make_plugin):
    plugins = [make_plugin("usurper", Usurper()), make_plugin("greeting", Greeting())]
    assert invoke("greet", plugins=plugins).stdout == "hello\n"
    helped = invoke("--help", plugins=plugins).stdout
    assert "Say hello." in helped
    assert "Say hello too." not in helped
    assert "Something else entirely" not in helped
    listed = invoke("list", "metrics", plugins=plugins)
    assert listed.exit_code == 2
    assert "the command 'run' exists already" in listed.stderr


def test_chat_is_asked_through_the_models_template(
    invoke, on_facts, model_folder, nudging, tmp_path
):
    folder = tmp_path / "chatty"
    shutil.copytree(model_folder, folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} says: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant says: {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    options = ["--editor", "nudge", *on_facts[2:], "--metrics", "accuracy,generation-match", "-q"]
    for name, more in (("plain", []), ("chat", ["--chat"])):
        result = invoke(
            "run", "--model", folder, *options, *more, "--out", name, plugins=[nudging]
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    plain, chat = (
        json.loads((tmp_path / name / "run.json").read_text())["trials"]
        for name in ("plain", "chat")
    )
    assert set(plain).isdisjoint(chat)
    fingerprints = {trial["dataset_fingerprint"] for trial in (*plain.values(), *chat.values())}
    assert len(fingerprints) == 2
    found = {(line["editor"], line["metric"]) for line in read_json(invoke, "chat")}
    assert ("nudge", "efficacy_generation") in found


def test_chat_with_a_model_that_has_no_template_is_refused(refuses, on_facts):
    refuses("run", *on_facts, "--chat", says=["no chat template", "Leave out --chat"])


def test_plan_cannot_know_what_a_model_knows(refuses, on_facts):
    refuses("run", *on_facts, "--plan", "--only-known", says="--only-known")


def test_held_out_text_that_cannot_be_read_is_refused(refuses, on_facts):
    refuses("run", *on_facts, "--held-out-text", "none.txt", says="none.txt")
