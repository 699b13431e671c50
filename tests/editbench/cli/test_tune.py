"""``editbench tune``: a search from the command line, killed and gone on with."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
import yaml

from editbench.editors.memit import MemitConfig
from editbench.plugins import hookimpl
from editbench.testing import toy_cases

SIZES = [part for size in (0.1, 1.0, 10.0) for part in ("--set", f"nudge.size={size}")]


@pytest.fixture(scope="module")
def validation_file(tmp_path_factory):
    """Sixteen facts with all their probes."""
    records = []
    for case in toy_cases(16):
        _, paraphrase, neighbor = case.probes
        records.append(
            {
                "subject": case.request.subject,
                "prompt": case.request.prompt,
                "target": case.request.target,
                "target_true": case.target_true,
                "paraphrases": [paraphrase.prompt],
                "neighbors": [{"prompt": neighbor.prompt, "target": neighbor.expected}],
            }
        )
    path = tmp_path_factory.mktemp("facts") / "validation.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def options(model_folder, validation_file):
    return ["tune", "--model", model_folder, "--dataset", f"facts={validation_file}"]


@pytest.fixture
def nudge(options):
    return [*options, "--editor", "nudge", *SIZES, "--out", "found.yaml"]


def trials_of(folder):
    """What was drawn and what came of it, of all trials that ended."""
    with closing(sqlite3.connect(folder / "trials.sqlite")) as database:
        return database.execute(
            "select param_name, param_value, value from trials join trial_params using (trial_id) "
            "join trial_values using (trial_id) where state = 'COMPLETE' order by trial_id, 1"
        ).fetchall()


def test_what_is_found_can_be_used(
    invoke, options, memit_options, model_folder, validation_file, tmp_path
):
    weights = ["--set", "memit.preservation_weight=10", "--set", "memit.preservation_weight=1000"]
    others = ["--set", "memit.learning_rate=0.5", "--set", "memit.clamp_factor=1"]
    result = invoke(
        *options, *memit_options, *weights, *others, "--n-edits", 4, "--out", "found.yaml"
    )
    assert result.exit_code == 0, result.output
    source = f"facts={validation_file}"
    assert f"Facts: 8 of {source} to search on and as many others to compare on, 4 written" in (
        result.stdout
    )
    assert "Trial 0: S " in result.stdout
    assert "nothing else seems to be left to try" in result.stdout
    assert f"On 8 held-out facts of {source}." in result.stdout
    text = (tmp_path / "found.yaml").read_text()
    config = MemitConfig.parse(yaml.safe_load(text), "found.yaml")
    derived = round(48 * 15_000 / 16_384, 1)  # keys have 48 dimensions
    assert config.preservation_weight in (10.0, 1000.0, derived)
    assert (config.critical_layers, config.n_steps) == ((1, 2), 3)
    comments = [line for line in text.splitlines() if line.startswith("# ")]
    for part in (
        "found by editbench tune",
        "Objective: S",
        "seed 0, 3 trials",  # two values, and the default that they are compared with
        "On held-out facts:",
    ):
        assert any(part in line for line in comments), part
    result = invoke(
        "run", "--model", model_folder, "--dataset", f"facts={validation_file}", "--n-edits", 2,
        "--config", "found.yaml", "--second-moments", memit_options[1], "--metrics", "success",
        "--out", "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Settings of memit on" in result.stdout
    assert "all of found.yaml" in result.stdout


def test_the_same_command_goes_on_and_another_is_refused(invoke, nudge, nudging, tmp_path):
    first = invoke(*nudge, "--trials", 1, plugins=[nudging])
    assert first.exit_code == 0, first.output
    assert "Keep the default, or search longer." in first.stdout
    second = invoke(*nudge, "--trials", 3, plugins=[nudging])
    assert second.exit_code == 0, second.output
    assert "Trial 0" not in second.stdout
    assert len(trials_of(tmp_path / "found.search")) == 3
    for changed, says in (
        (["--seed", 1], "of a search with another seed, got 1 and 0"),
        (["--objective", "SA"], "of a search with another objective, got 'SA' and 'S'"),
        (["--set", "nudge.layer=2"], "of a search with another start"),
    ):
        refused = invoke(*nudge, *changed, plugins=[nudging])
        assert refused.exit_code == 2
        assert says in refused.stderr


def test_a_search_over_given_layers_goes_on(invoke, options, memit_options):
    """What JSON has no type for is the same when it is read again."""
    layers = ["--set", "memit.critical_layers=[1]", "--set", "memit.critical_layers=[2]"]
    quick = ["--second-moments", memit_options[1], "--set", "memit.n_steps=1"]
    command = [*options, *layers, *quick, "--n-edits", 2, "--min-cases", 2, "--out", "found.yaml"]
    for n_trials in (1, 2):
        result = invoke(*command, "--trials", n_trials)
        assert result.exit_code == 0, result.output


def test_without_optuna_it_says_what_to_install(nudge, nudging, refuses, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    refuses(*nudge, plugins=[nudging], says=["needs Optuna", "pip install 'editbench[tune]'"])


def test_what_cannot_be_tuned_is_refused(options, nudging, refuses, invoke, tmp_path):
    out = ["--out", "found.yaml"]
    refuses(*options, *out, "--editor", "mend", says="'editbench train mend'")
    refuses(
        *options, *out, "--editor", "nudge", plugins=[nudging],
        says="names no hyperparameters to search for. Give several values with --set nudge.FIELD=",
    )  # fmt: skip
    refuses(*options, *out, "--editor", "ft-w", "--layers", "9", says="layer")
    refuses(*options, *out, "--layers", "x", says="--layers: got 'x'")
    twice = ["--layers", "1-2", "--set", "memit.critical_layers=[1]"]
    refuses(*options, *out, *twice, says="--set gives critical_layers, too")
    refuses(*options, *out, "--n-edits", 9, says="too few validation facts")
    refuses(*options, "--out", "nowhere/found.yaml", says="there is no such folder")
    (tmp_path / "found.yaml").write_text("mine: 1\n")
    refuses(*options, *out, says="the file is there already")


def test_reported_facts_can_be_left_out(options, nudging, invoke, refuses, validation_file):
    rest = ["--editor", "nudge", *SIZES, "--trials", 1, "--out", "found.yaml"]
    all_of_them = ["--exclude", f"facts={validation_file}"]
    refuses(*options, *all_of_them, *rest, plugins=[nudging], says="got 0 facts")
    few = validation_file.with_name("few.jsonl")
    few.write_text("".join(validation_file.read_text().splitlines(keepends=True)[:6]))
    result = invoke(*options, "--exclude", f"facts={few}", *rest, plugins=[nudging])
    assert result.exit_code == 0, result.output
    assert f"Left out for facts={few}: 6 of 16 facts." in result.stdout
    assert f"Facts: 5 of facts={validation_file} to search on and as many" in result.stdout


def test_an_editor_of_a_plugin_names_its_own(invoke, options, nudging, make_plugin, tmp_path):
    from editbench.editors.search_space import Choices

    (nudge,) = nudging.plugin.editbench_register_editors()

    class Offering(nudge):
        name = "offering"

        @classmethod
        def search_space(cls, model, config):
            return {"size": Choices((0.1, 1.0))}

    class Wrong(nudge):
        name = "wrong"

        @classmethod
        def search_space(cls, model, config):
            return {"depth": Choices((1, 2))}

    class Plugin:
        @hookimpl
        def editbench_register_editors(self):
            return [Offering, Wrong]

    plugins = [make_plugin("third", Plugin())]
    result = invoke(*options, "--editor", "offering", "--out", "o.yaml", plugins=plugins)
    assert result.exit_code == 0, result.output
    assert yaml.safe_load((tmp_path / "o.yaml").read_text())["size"] in (0.1, 1.0)
    result = invoke(*options, "--editor", "wrong", "--out", "w.yaml", plugins=plugins)
    assert result.exit_code == 2
    assert "search_space() of" in result.stderr
    assert "a field that is not there, got 'depth'" in result.stderr


LISTEN = """import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"""


def interrupt(command, folder, how):
    """Runs the program until its first trial is done; what it says then."""
    program = [sys.executable, "-c", LISTEN, "-m", "editbench.cli", *map(str, command)]
    with subprocess.Popen(
        program,
        cwd=folder,
        env={**os.environ, "EDITBENCH_CACHE": str(folder / "cache-of-killed")},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as program:
        deadline = time.monotonic() + 120
        while not (folder / "k.yaml").exists():
            assert program.poll() is None, program.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        program.send_signal(how)
        _, errors = program.communicate(timeout=60)
    return program.returncode, errors


@pytest.mark.thorough
def test_ctrl_c_keeps_what_was_found(options, memit_options, tmp_path):
    command = [*options, *memit_options, "--n-edits", 2, "--out", "k.yaml"]
    status, errors = interrupt(command, tmp_path, signal.SIGINT)
    assert status == 130
    assert "the best settings so far are in k.yaml" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    text = (tmp_path / "k.yaml").read_text()
    assert "not compared, since the search has not ended" in text
    MemitConfig.parse(yaml.safe_load(text), "k.yaml")


@pytest.mark.thorough
def test_killed_and_gone_on_with(invoke, options, memit_options, tmp_path):
    command = [*options, *memit_options, "--n-edits", 8, "--trials", 3]
    status, _ = interrupt([*command, "--out", "k.yaml"], tmp_path, signal.SIGKILL)
    assert status == -signal.SIGKILL
    for name in ("k.yaml", "whole.yaml"):
        result = invoke(*command, "--out", name)
        assert result.exit_code == 0, result.output
    assert trials_of(tmp_path / "k.search") == trials_of(tmp_path / "whole.search")
    killed, whole = (yaml.safe_load((tmp_path / f"{n}.yaml").read_text()) for n in ("k", "whole"))
    assert killed == whole
    assert not list(tmp_path.glob("*/.unfinished*")) + list(tmp_path.glob(".unfinished*"))
