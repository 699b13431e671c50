"""``editbench trace``, and ``--layers`` of ``run`` and ``edit``."""

import csv
import io
import json

import pytest

from editbench.cli.layers import FactSource, WantedLayers, facts_of_dataset
from editbench.cli.overrides import Overrides
from editbench.cli.progress import ProgressDisplay
from editbench.editors.memit import Memit
from editbench.editors.rome import Rome
from editbench.editors.unedited import Unedited
from editbench.errors import ConfigError, TraceError
from editbench.plugins import PluginManager
from editbench.testing import tiny_model
from editbench.tracing.facts import KnownFact
from editbench.tracing.prompts import prompt_of
from editbench.tracing.suggestion import Suggestion

NAMES = ("Ana Lund", "Boris Marek", "Carmen Novak")


@pytest.fixture(scope="module")
def known_file(tmp_path_factory):
    """Three facts: what the tiny model says, but for the last."""
    model = tiny_model()
    records = []
    for name in NAMES:
        prompt = f"{name} works as a"
        answer = prompt_of(model, KnownFact("", name, prompt, 0, "?")).answer_text.strip()
        records.append({"subject": name, "attribute": answer, "prompt": prompt})
    records[-1]["attribute"] = "Zanzibar"
    path = tmp_path_factory.mktemp("known") / "known.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture
def options(model_folder, known_file):
    return ["trace", "--model", model_folder, "--facts", known_file, "--n-samples", 2]


def test_a_trace_leaves_tables_and_figures(invoke, options, tmp_path):
    result = invoke(*options, "--out", "traced", "--heat-maps", 2)
    assert result.exit_code == 0, result.output
    assert "2 of 3 facts of known.json are predicted" in result.stdout
    assert "1 skipped" in result.stdout
    assert "One state restored" in result.stdout
    assert "modules severed" in result.stdout
    # Random weights keep no facts: either is an honest answer.
    assert "Suggested critical layers: " in result.stdout or "suggest layers: " in result.stdout
    folder = tmp_path / "traced"
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == [
        "effects.csv", "effects.json", "figures", "prompts", "trace.json",
    ]  # fmt: skip
    assert len(list(folder.glob("prompts/*.safetensors"))) == 2
    assert len(list(folder.glob("figures/prompt-*.png"))) == 2
    assert json.loads((folder / "trace.json").read_text())["facts"]["n_skipped"] == 1


def test_resumed_it_says_the_same_without_tracing(invoke, options, monkeypatch):
    first = invoke(*options, "--out", "traced", "--format", "json", "--no-figures")
    content = json.loads(first.stdout)
    assert content["clean_probability"]["n"] == 2
    monkeypatch.setattr("editbench.tracing.tracer.Tracer.trace", None)
    again = invoke(
        *options, "--out", "traced", "--format", "csv", "--no-figures", "--resume", "--quiet"
    )
    lines = list(csv.DictReader(io.StringIO(again.stdout)))
    assert [float(line["effect"]) for line in lines] == [
        line["effect"] for line in content["effects"]
    ]


def test_what_is_refused(refuses, options, model_folder, known_file, tmp_path):
    trace = ["trace", "--model", model_folder]
    refuses("trace", "--model", "nowhere", "--facts", known_file, says="nowhere")
    refuses(*trace, "--facts", tmp_path / "none.json", says="cannot be read")
    refuses(*options, "--noise", "loud", says="--noise: got 'loud'")
    refuses(*options, "--dataset", "atlas", says="exclude each other")
    refuses(*options, "--resume", says="which trace?")
    refuses(*trace, "--dataset", "atlsa", says="Did you mean 'atlas'?")
    bad = tmp_path / "bad.json"
    bad.write_text('[{"subject": "Ana", "attribute": "x"}]')
    refuses(*trace, "--facts", bad, says="field 'prompt' is missing")
    unknown = tmp_path / "unknown.json"
    unknown.write_text(json.dumps(json.loads(known_file.read_text())[-1:]))
    refuses(*trace, "--facts", unknown, "--quiet", says="predicts none of the facts")
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"subject": "Ana", "prompt": "{} is a", "target": "pilot"}\n')
    refuses(*trace, "--dataset", f"facts={facts}", says="names no true objects")


def test_a_folder_that_holds_a_trace_or_something_else(invoke, refuses, options, tmp_path):
    assert invoke(*options, "--out", "traced", "--no-figures").exit_code == 0
    refuses(*options, "--out", "traced", says="holds a trace already")
    resumed = [*options, "--out", "traced", "--resume", "--quiet"]
    refuses(*resumed, "--seed", 1, says="settings.seed: got 1; expected 0")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    refuses(*options, "--out", "other", says="thesis.tex")


class TestLayers:
    EDITORS = {"memit": Memit, "rome": Rome, "unedited": Unedited}  # noqa: RUF012
    OVERRIDES = {  # noqa: RUF012
        "memit": [Overrides(set_values={"n_steps": 3})],
        "rome": [Overrides()],
        "unedited": [Overrides()],
    }
    SOURCE = FactSource("toy", lambda: [KnownFact("0", "Ana", "Ana is", 0, "x")])

    def settle(self, text, source=SOURCE):
        choice = WantedLayers(text)
        choice.check(self.EDITORS, self.OVERRIDES)
        with ProgressDisplay(quiet=True) as display:
            return choice.settle(self.OVERRIDES, self.EDITORS, tiny_model(), source, None, display)

    def test_as_numbers(self):
        assert self.settle("1-2") == {
            "memit": [Overrides(set_values={"n_steps": 3, "critical_layers": [1, 2]})],
            "rome": [Overrides(set_values={"critical_layers": [2]})],
            "unedited": [Overrides()],
        }

    def test_none(self):
        assert self.settle(None) is self.OVERRIDES

    def test_auto(self, monkeypatch, capsys):
        suggestion = Suggestion((2, 3), "a rule", (), 7)
        monkeypatch.setattr(
            "editbench.tracing.suggestion.suggest_layers", lambda *_, **__: suggestion
        )
        (overrides,) = self.settle("auto")["memit"]
        assert overrides.set_values["critical_layers"] == [2, 3]

    def test_auto_of_a_file(self, known_file, monkeypatch):
        seen = []

        def suggest(model, facts, **_):
            seen.extend(fact.subject for fact in facts)
            return Suggestion((1,), "a rule", (), len(facts))

        monkeypatch.setattr("editbench.tracing.suggestion.suggest_layers", suggest)
        self.settle(f"auto={known_file}")
        assert seen == list(NAMES)

    def test_auto_without_facts(self):
        with pytest.raises(ConfigError, match="names no true objects"):
            self.settle("auto", FactSource("toy", list))

    def test_auto_of_facts_that_nobody_knows(self):
        with pytest.raises(TraceError, match="predicts none of the facts") as refusal:
            self.settle("auto")
        assert "--layers auto" in refusal.value.__notes__[0]

    @pytest.mark.parametrize("text", ["all", "x", "3-1", "automatic", "auto=nowhere.json"])
    def test_malformed(self, text):
        with pytest.raises(ConfigError, match="--layers"):
            self.settle(text)

    def test_twice(self):
        settings = {"memit": [Overrides(set_values={"critical_layers": [1]})]}
        with pytest.raises(ConfigError, match="Give one of them"):
            WantedLayers("auto").check({"memit": Memit}, settings)

    def test_for_editors_without_any(self):
        with pytest.raises(ConfigError, match="no editor of this command has critical layers"):
            WantedLayers("2").check({"unedited": Unedited}, {"unedited": [Overrides()]})

    def test_facts_of_the_validation_split_are_traced_where_there_is_one(self, tmp_path):
        plugins = PluginManager()
        assert facts_of_dataset("atlas", plugins, tmp_path).name == "atlas-validation"
        assert facts_of_dataset("counterfact", plugins, tmp_path).name == "counterfact"
        assert facts_of_dataset("facts=a.jsonl", plugins, tmp_path).name == "facts=a.jsonl"


def test_an_edit_of_layers_by_number(invoke, refuses, model_folder, facts_file, moments_file):
    options = [
        "edit", "--model", model_folder, "--facts", facts_file, "--second-moments", moments_file,
        "--set", "memit.n_steps=2", "--set", "memit.n_context_prefixes=1", "--quiet",
    ]  # fmt: skip
    result = invoke(*options, "--layers", "2", "--out", "edit.safetensors")
    assert result.exit_code == 0, result.output
    assert "transformer.h.2.mlp.c_proj.weight" in result.stdout
    assert "transformer.h.1.mlp.c_proj.weight" not in result.stdout
    refuses(
        *options, "--layers", "2", "--set", "memit.critical_layers=[1]", "--out", "e.safetensors",
        says="Give one of them",
    )  # fmt: skip
    refuses(*options, "--layers", "9", "--out", "e.safetensors", says="no such layer")
