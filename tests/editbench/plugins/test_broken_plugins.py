"""Plugins that break their contract, installed: one line names plugin, package and call."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from editbench.cli.main import build_cli
from editbench.errors import PluginError
from editbench.plugins import load_plugins

# Every class breaks one clause of what is expected of it, and is called after it.
SOURCE = '''
import contextlib
import sys

import click

from editbench.plugins import hookimpl


class Stop(BaseException):
    """Asks everybody to stop, as libraries do that end tasks."""


@hookimpl
def editbench_register_editors():
    from editbench.editors.base import Editor, EditorConfig
    from editbench.edits.edit import Edit, NoEdit
    from pydantic import field_validator

    class Config(EditorConfig):
        size: float = 1.0

        @field_validator("size")
        @classmethod
        def _check(cls, value):
            if value == 7:
                raise KeyError("seven")
            return value

    class Sound(Editor):
        """Does nothing, and breaks nothing."""
        name = "sound"
        config_type = Config

        def edit(self, model, requests, resources):
            return NoEdit.of(model, requests)

    def broken(editor, **members):
        return type(editor, (Sound,), {"name": editor, **members})

    class Slipping(Edit):
        def __init__(self, card, where):
            self.card, self.where = card, where

        @property
        def changes_something(self):
            return 1 if self.where == "says" else True

        @contextlib.contextmanager
        def applied(self, model):
            if self.where == "on":
                raise ValueError("will not go on")
            yield
            if self.where == "off":
                raise ValueError("will not come off")

        def save(self, path):
            raise LookupError("nowhere to put it")

    def slipping(where):
        return lambda self, model, requests, resources: Slipping(
            NoEdit.of(model, requests).card, where
        )

    def fail(error):
        def raises(*arguments):
            raise error
        return raises

    return [
        Sound,
        broken("exits", edit=lambda *_: sys.exit(4)),
        broken("stops", edit=fail(Stop("now"))),
        broken("raises", edit=fail(ValueError("two\\nlines"))),
        broken("returns-none", edit=lambda *_: None),
        broken("edit-says", edit=slipping("says")),
        broken("edit-on", edit=slipping("on")),
        broken("edit-off", edit=slipping("off")),
        broken("unusable", check_usable=fail(TypeError("no idea"))),
        broken("refuses", check_usable=fail(__import__("editbench.errors").errors.EditError(
            "refuses: no model is good enough."))),
        broken("default-raises", default_config=classmethod(fail(ValueError("no default")))),
        broken("default-bare", default_config=classmethod(lambda cls, model: Config())),
        broken("derived-list", derive_defaults=classmethod(lambda cls, model: ["size"])),
        broken("derived-unknown", derive_defaults=classmethod(lambda cls, model: {"depth": 1})),
        broken("construct", __init__=fail(ValueError("not today"))),
        broken("plans", estimate=lambda *_: 3),
    ]


@hookimpl
def editbench_register_datasets():
    from editbench.datasets.base import Dataset
    from editbench.requests import EditCase, EditRequest, Probe

    def case(number, case_id=None):
        request = EditRequest(case_id or str(number), f"Ana{number}", "{} is a", "poet")
        return EditCase(request, "judge", (Probe("efficacy", request.text, "poet", "judge"),))

    class Few(Dataset):
        """Three cases."""
        name = "few"
        default_metrics = ("success",)
        fingerprint = "f" * 64

        def cases(self):
            return [case(number) for number in range(3)]

    def broken(dataset, **members):
        return type(dataset, (Few,), {"name": dataset, **members})

    def fail(error):
        def raises(*arguments):
            raise error
        return raises

    return [
        Few,
        broken("twice", cases=lambda self: [case(1), case(2, "1"), case(3)]),
        broken("cases-raise", cases=fail(RuntimeError("the tap is dry"))),
        broken("cases-exit", cases=lambda self: sys.exit(4)),
        broken("cases-lazy", cases=lambda self: (case(number) for number in range(3))),
        broken("cases-dicts", cases=lambda self: [{"subject": "Ana"}]),
        broken("cases-numbers", cases=lambda self: [case(1, case_id=17)]),
        broken("fingerprint-raises", fingerprint=property(fail(KeyError("hash")))),
        broken("fingerprint-none", fingerprint=None),
        broken("texts-none", held_out_texts=lambda self: None, default_metrics=("perplexity",)),
    ]


@hookimpl
def editbench_register_metrics():
    from editbench.metrics.base import Metric, ModelMetric
    from editbench.questions import Score

    class Depth(ModelMetric):
        """How many layers a model has."""
        name = "depth"
        produces = ("depth",)

        def units(self):
            return ["layers"]

        def measure(self, model, units, on_progress):
            return {"layers": {"depth": 1.0}}

    def broken_depth(metric, **members):
        return type(metric, (Depth,), {"name": metric, "produces": (metric,), **members})

    class Length(Metric):
        """How long a subject is."""
        name = "length"
        produces = ("length",)

        def questions(self, case):
            return (Score(case.request.text, case.request.target),)

        def values(self, case, answers):
            return {"length": 1.0}

    def broken(metric, **members):
        return type(metric, (Length,), {"name": metric, "produces": (metric,), **members})

    def fail(error):
        def raises(*arguments):
            raise error
        return raises

    def fails_on_few(self, case):
        if case.request.subject.startswith("Ana"):
            raise ZeroDivisionError("no such case")
        return (Score(case.request.text, case.request.target),)

    def refit(self, cases):
        return next(each for each in refitted if True)()

    refitted = [broken("refit", values=fail(IndexError("empty")))]
    refitted[0].fitted = refit
    return [
        Length,
        *refitted,
        broken("asks-wrongly", questions=fails_on_few, produces=("length",)),
        broken("asks-nothing", questions=lambda self, case: None),
        broken("asks-text", questions=lambda self, case: ("What?",)),
        broken("asks-number", questions=lambda self, case: (Score(3, "x"),)),
        broken("counts-wrongly", values=fail(ZeroDivisionError("no cases"))),
        broken("counts-exit", values=lambda *_: sys.exit()),
        broken("counts-list", values=lambda *_: [1.0]),
        broken("counts-text", values=lambda *_: {"counts-text": "many"}),
        broken("fits-none", fitted=lambda self, cases: None),
        broken("fits-wrongly", fitted=fail(OSError("no dictionary"))),
        broken("constructs", __init__=fail(ValueError("who?"))),
        broken_depth("units-twice", units=lambda self: ["a", "a"]),
        broken_depth("units-text", units=lambda self: "layers"),
        broken_depth("rows-text", rows=property(lambda self: ("depth",))),
        broken_depth("settings-odd", settings=property(lambda self: {"a": {1, 2}})),
        broken_depth("measures-list", measure=lambda *_: [1.0]),
        broken_depth("measures-text", measure=lambda *_: {"layers": {"measures-text": "many"}}),
    ]


@hookimpl
def editbench_register_models():
    from editbench.models.spec import ModelSpec

    def vanish():
        raise EOFError("the model is gone")

    return [ModelSpec("gone", load=vanish), ModelSpec("number", load=lambda: 3)]


@hookimpl
def editbench_register_commands(cli):
    @cli.command()
    @click.argument("how")
    def stumble(how):
        """Fail in some way."""
        if how == "exit":
            sys.exit(7)
        if how == "usage":
            raise click.UsageError("not like this")
        raise ValueError(f"stumbled over {how}")
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with an installed distribution, as pip leaves it."""
    folder = tmp_path_factory.mktemp("site")
    metadata = folder / "editbench_broken-3.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: editbench-broken\nVersion: 3.1\n"
    )
    (metadata / "entry_points.txt").write_text("[editbench]\nbroken = editbench_broken\n")
    (folder / "editbench_broken.py").write_text(SOURCE)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    from editbench.testing import tiny_model, tiny_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def invoke(site, tmp_path, monkeypatch):
    """Runs the command line; what is raised there, and is not turned into a message, is raised."""
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        result = CliRunner().invoke(build_cli(load_plugins()), [str(each) for each in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def run(invoke, model_folder):
    """Runs a grid on three cases, with nothing kept between runs."""

    def call(*arguments):
        options = ["--n-edits", 3, "--no-cache", "--quiet", "--out", "here"]
        options += [] if "--model" in arguments else ["--model", model_folder]
        options += [] if "--editor" in arguments else ["--editor", "sound"]
        return invoke("run", *options, *arguments)

    return call


def refusal(result):
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


WHOSE = "plugin 'broken' (editbench-broken 3.1)"


@pytest.mark.parametrize(
    ("editor", "says"),
    [
        ("exits", "editor 'exits': edit() of {}: failed, got SystemExit: 4"),
        ("stops", "editor 'stops': edit() of {}: failed, got Stop: now"),
        ("raises", "editor 'raises': edit() of {}: failed, got ValueError: two lines"),
        ("returns-none", "edit() of {}: returned the wrong thing, got None; expected an Edit"),
        ("edit-says", "edit of 'edit-says': changes_something of {}: returned the wrong thing"),
        ("edit-on", "edit of 'edit-on': applied() of {}: failed, got ValueError: will not go on"),
        ("edit-off", "applied() of {}: failed, got ValueError: will not come off"),
        ("unusable", "editor 'unusable': check_usable() of {}: failed, got TypeError: no idea"),
    ],
)
def test_editor_that_fails_is_a_row_and_the_others_go_on(run, editor, says):
    result = run("--dataset", "few", "--editor", editor, "--editor", "sound")
    assert result.exit_code == 1, result.output
    expected = says.format(WHOSE)
    assert expected in " ".join(result.stdout.split())
    records = [json.loads(path.read_text()) for path in Path("here/trials").glob("*/trial.json")]
    assert sorted(record["status"] for record in records) == ["error", "no_effect", "ok"]
    (failed,) = (record for record in records if record["status"] == "error")
    assert expected in failed["message"]
    assert "Traceback" in failed["traceback"]
    assert ("editbench_broken.py" in failed["traceback"]) is ("failed, got" in says)
    row = json.loads(Path("here/trials", failed["trial"], "rows.jsonl").read_text())
    assert (row["status"], row["message"]) == ("error", failed["message"])


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("counts-wrongly", "values() of {}: failed, got ZeroDivisionError: no cases"),
        ("counts-exit", "values() of {}: failed, got SystemExit"),
        ("counts-list", "values() of {}: returned the wrong thing, got list of 1; expected a map"),
        ("counts-text", "values() of {}: returned the wrong thing, got 'many' for 'counts-text'"),
        ("measures-list", "measure() of {}: returned the wrong thing, got list of 1; expected a m"),
        ("measures-text", "measure() of {}: returned the wrong thing, got 'many' for 'measures-te"),
        ("refit", "values() of {}: failed, got IndexError: empty"),
    ],
)
def test_metric_that_fails_fails_its_trials(run, metric, says):
    result = run("--dataset", "few", "--metrics", metric)
    assert result.exit_code == 1, result.output
    said = " ".join(result.stdout.split())
    assert f"metric '{metric}': {says}".format(WHOSE) in said


def test_metric_that_fails_on_one_dataset_is_measured_on_the_other(run, invoke, tmp_path):
    fact = {"subject": "Elif Sato", "prompt": "{} works as a", "target": "poet"}
    facts = [json.dumps({**fact, "subject": name}) for name in ("Bo Ek", "Cy Ek", "Di Ek")]
    (tmp_path / "facts.jsonl").write_text("\n".join(facts))
    result = run(
        "--dataset", "few", "--dataset", "facts=facts.jsonl", "--metrics", "asks-wrongly",
        "--editor", "sound",
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    assert f"questions() of {WHOSE}: failed, got ZeroDivisionError: no such case" in result.stdout
    lines = json.loads(invoke("report", "here", "--format", "json").stdout)
    assert {line["dataset"] for line in lines} == {"facts"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dataset", "twice"], "'twice': cases() of {}: returned 2 cases with one id, got '1'"),
        (["--dataset", "cases-raise"], "cases() of {}: failed, got RuntimeError: the tap is dry"),
        (["--dataset", "cases-exit"], "cases() of {}: failed, got SystemExit: 4"),
        (["--dataset", "cases-lazy"], "wrong thing, got generator; expected a sequence of EditC"),
        (["--dataset", "cases-dicts"], "wrong thing, got dict of 1; expected a sequence of EditC"),
        (["--dataset", "cases-numbers"], "with a wrong case_id, got 17; expected a string"),
        (["--dataset", "fingerprint-raises"], "fingerprint of {}: failed, got KeyError: 'hash'"),
        (["--dataset", "fingerprint-none"], "fingerprint of {}: is wrong, got None; expected"),
        (["--dataset", "texts-none"], "held_out_texts() of {}: returned the wrong thing, got Non"),
        (["--metrics", "asks-wrongly"], "'asks-wrongly': questions() of {}: failed, got ZeroDiv"),
        (["--metrics", "asks-nothing"], "questions() of {}: returned the wrong thing, got None"),
        (["--metrics", "asks-text"], "returned the wrong thing, got 'What?'; expected a tuple"),
        (["--metrics", "asks-number"], "returned a question with a wrong 'prompt', got Score("),
        (["--metrics", "fits-none"], "fitted() of {}: returned the wrong thing, got None; expect"),
        (["--metrics", "fits-wrongly"], "fitted() of {}: failed, got OSError: no dictionary"),
        (["--metrics", "constructs"], "'constructs': its constructor of {}: failed, got ValueErr"),
        (["--metrics", "units-twice"], "units() of {}: returned 2 units with one id, got 'a'"),
        (["--metrics", "units-text"], "units() of {}: returned the wrong thing, got 'layers'"),
        (["--metrics", "rows-text"], "rows of {}: returned the wrong thing, got 'depth'; expect"),
        (["--metrics", "settings-odd"], "settings of {}: failed, got TypeError: Object of type"),
        (["--editor", "default-raises"], "default_config() of {}: failed, got ValueError: no def"),
        (["--editor", "default-bare"], "default_config() of {}: returned the wrong thing, got Co"),
        (["--editor", "derived-list"], "derive_defaults() of {}: returned the wrong thing, got l"),
        (["--editor", "derived-unknown"], "default_config() of {}.)"),
        (["--editor", "construct"], "editor 'construct': its constructor of {}: failed, got Valu"),
        (["--editor", "refuses"], "no model is good enough. (editor 'refuses': check_usable() of"),
        (["--editor", "sound", "--set", "sound.size=7"], "'sound': Config of {}: failed, got Key"),
        (["--model", "gone"], "model 'gone': load() of {}: failed, got EOFError: the model is go"),
        (["--model", "number"], "model 'number': load() of {}: returned the wrong thing, got 3;"),
    ],
)
def test_what_cannot_go_on_is_refused_in_one_line(run, arguments, says):
    dataset = [] if "--dataset" in arguments else ["--dataset", "few"]
    said = refusal(run(*dataset, *arguments))
    assert says.format(WHOSE) in said
    assert WHOSE in said
    assert not Path("here").exists()


def test_plan_goes_on_without_what_an_editor_says(run):
    result = run("--dataset", "few", "--editor", "plans", "--plan")
    assert result.exit_code == 0, result.output
    assert f"estimate() of {WHOSE}: returned the wrong thing" in " ".join(result.stdout.split())


@pytest.mark.parametrize("editor", ["exits", "stops", "returns-none", "default-raises"])
def test_check_says_which_clause_is_broken(invoke, editor):
    result = invoke("check", editor)
    assert result.exit_code == 1, result.output
    assert "FAILED  computes an edit with its default configuration" in result.stdout
    assert WHOSE in result.stdout


@pytest.mark.parametrize("editor", ["edit-on", "edit-off", "edit-says"])
def test_check_goes_on_after_a_broken_clause(invoke, editor):
    result = invoke("check", editor)
    assert result.exit_code == 1, result.output
    assert "ok      computes an edit with its default configuration" in result.stdout
    assert f"of {WHOSE}" in result.stdout


def test_edit_that_cannot_be_saved(invoke, model_folder, tmp_path):
    fact = {"subject": "Elif Sato", "prompt": "{} works as a", "target": "poet"}
    (tmp_path / "facts.jsonl").write_text(json.dumps(fact))
    options = ["--facts", "facts.jsonl", "--out", "edit.safetensors", "--no-cache"]
    said = refusal(invoke("edit", "--model", model_folder, "--editor", "edit-on", *options))
    assert f"edit of 'edit-on': save() of {WHOSE}: failed, got LookupError: nowhere" in said


@pytest.mark.parametrize(
    ("how", "exit_code", "says"),
    [
        ("exit", 7, ""),
        ("usage", 2, "not like this"),
        ("stone", 2, f"command 'stumble' of {WHOSE}: failed, got ValueError: stumbled over stone"),
    ],
)
def test_command_that_fails(invoke, how, exit_code, says):
    result = invoke("stumble", how)
    assert result.exit_code == exit_code
    assert says in result.stderr
    assert result.stderr.count("\n") <= 1


def test_the_program_itself_says_one_line_and_shows_the_traceback_on_request(site):
    search = f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": search}
    environment.pop("EDITBENCH_TRACEBACK", None)
    command = [sys.executable, "-m", "editbench.cli", "stumble", "stone"]
    plain, traced = (
        subprocess.run(command, check=False, env=environment | more, capture_output=True, text=True)
        for more in ({}, {"EDITBENCH_TRACEBACK": "1"})
    )
    assert plain.returncode == traced.returncode == 2
    assert plain.stderr.startswith("Error: command 'stumble' of ")
    assert plain.stderr.count("\n") == 1
    assert "ValueError: stumbled over stone" in traced.stderr
    assert "editbench_broken.py" in traced.stderr
    assert traced.stderr.endswith(plain.stderr)


def test_guarded_classes_are_otherwise_as_they_were(invoke):
    from cloudpickle import dumps, loads

    plugins = load_plugins()
    editor = plugins.get_editor("raises")
    assert (editor.__name__, editor.name) == ("raises", "raises")
    assert plugins.get_editor("sound").__module__ == "editbench_broken"
    assert plugins.get_editor("memit").__module__ == "editbench.editors.memit"
    config = editor.config_type()
    sent = loads(dumps(editor(config)))  # as a cluster's workers get it
    with pytest.raises(PluginError, match="ValueError: two lines"):
        sent.edit(None, [], None)
