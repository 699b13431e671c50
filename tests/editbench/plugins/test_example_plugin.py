"""The plugin in docs/examples, really installed: found, checked and run like any other."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from editbench.cli.main import build_cli
from editbench.plugins import load_plugins

PACKAGE = Path(__file__).parents[3] / "docs" / "examples" / "editbench-example-plugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that the package is installed into; the environment of the tests stays as it is."""
    pytest.importorskip("hatchling", reason="building the example plugin needs hatchling")
    folder = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", folder, PACKAGE]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder


@pytest.fixture
def invoke(site, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDITBENCH_CACHE", str(tmp_path / "cache"))

    def call(*arguments):
        result = CliRunner().invoke(build_cli(load_plugins()), [str(each) for each in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def test_installed_plugin_is_listed_by_the_program(site):
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "editbench.cli", "list", "--format", "json"]
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    listing = json.loads(found.stdout)
    assert listing["problems"] == []
    for kind, name in (("editors", "gradient-step"), ("metrics", "margin")):
        (entry,) = [each for each in listing[kind] if each["name"] == name]
        assert entry["plugin"] == "example"


@pytest.mark.parametrize("name", ["gradient-step", "clipped"])
def test_editors_keep_the_contract(invoke, name):
    result = invoke("check", name)
    assert result.exit_code == 0, result.output


def test_an_editor_out_of_the_slots_is_short_and_writes_streams(invoke, tmp_path):
    from editbench.editors.context_prefixes import ContextPrefixes
    from editbench.edits.weight_edit import WeightEdit
    from editbench.testing import tiny_model, tiny_tokenizer

    source = PACKAGE / "src" / "editbench_example_plugin" / "clipped.py"
    assert len(source.read_text().splitlines()) <= 25
    tiny_model().model.save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    fact = {"prompt": "{} works as a", "target": "poet"}
    facts = [{"subject": name, **fact} for name in ("Ana Lund", "Elif Sato", "Boris Sato")]
    (tmp_path / "facts.jsonl").write_text("\n".join(json.dumps(fact) for fact in facts))
    (tmp_path / "prefixes.json").write_text(json.dumps(ContextPrefixes((("",),)).groups))
    kept = {}
    for bound in ("0.5", "1000"):
        result = invoke(
            "edit", "--editor", "clipped", "--model", "model", "--facts", "facts.jsonl",
            "--batch-size", "2", "--context-prefixes", "prefixes.json",
            "--set", f"clipped.bound={bound}", "--set", "clipped.second_moment_tokens=2000",
            "--set", "clipped.finish=none", "--out", f"{bound}.safetensors",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        kept[bound] = WeightEdit.load(tmp_path / f"{bound}.safetensors")
        assert [fact["status"] for fact in kept[bound].card.extra["facts"]] != []
    sizes = [edit.card.extra["updates"] for edit in kept.values()]
    for name in sizes[0]:
        assert 0 < sizes[0][name]["relative_norm"] < sizes[1][name]["relative_norm"]


def test_editor_and_metric_run(invoke, tmp_path):
    from editbench.testing import tiny_model, tiny_tokenizer

    tiny_model().model.save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    fact = {"prompt": "{} works as a", "target": "poet", "target_true": "baker"}
    facts = [{"subject": name, **fact} for name in ("Ana Lund", "Elif Sato")]
    (tmp_path / "facts.jsonl").write_text("\n".join(json.dumps(fact) for fact in facts))
    result = invoke(
        "run", "--editor", "gradient-step", "--model", "model", "--dataset", "facts=facts.jsonl",
        "--metrics", "success,margin", "--set", "gradient-step.layer=1", "--out", "here",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = json.loads(invoke("report", "here", "--format", "json").stdout)
    value = {(line["editor"], line["metric"]): line["value"] for line in lines}
    assert value["gradient-step", "efficacy_success"] == 100
    assert value["gradient-step", "efficacy_margin"] > value["unedited", "efficacy_margin"]


def test_plugin_can_be_disabled(invoke, monkeypatch):
    monkeypatch.setenv("EDITBENCH_DISABLE_PLUGINS", "example")
    assert invoke("check", "gradient-step").exit_code == 2
