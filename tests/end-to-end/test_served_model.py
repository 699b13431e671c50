"""An edit of a real model in every form in which it is served, read by what serves it."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from editbench.cli.main import build_cli
from editbench.datasets.facts import read_facts
from editbench.plugins.manager import load_plugins

pytestmark = [pytest.mark.real, pytest.mark.timeout(1_800)]
ROOT = Path(__file__).parents[2]
FACTS = ROOT / "docs" / "examples" / "real-facts.jsonl"
MODEL = "smollm2-135m-gguf"
# Where `make test-real` puts llama.cpp, by its package for Node.
NODE_MODULES = Path(os.environ.get("NODE_PATH", ROOT / ".venv" / "node" / "node_modules"))


def invoke(*arguments: object) -> str:
    plugins = load_plugins()
    result = CliRunner().invoke(
        build_cli(plugins), [str(each) for each in arguments], obj=plugins, catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def edit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MEMIT's edit of fifteen facts."""
    folder = tmp_path_factory.mktemp("served")
    out = folder / "edit.safetensors"
    invoke("edit", "--model", MODEL, "--facts", FACTS, "--out", out, "--cache", folder / "cache")
    return out


def apply(edit: Path, form: str, name: str) -> Path:
    """Write a form; it has to say what the edited model says."""
    out = edit.with_name(name)
    if not out.exists():
        output = invoke("apply", "--model", MODEL, "--edit", edit, "--as", form, "--out", out)
        numbers = r"(\d+) of (\d+) greedy texts.* of 15 facts (\d+) are said, (\d+) by"
        n_same, n_prompts, n_served, n_computed = map(int, re.search(numbers, output).groups())
        assert n_same >= 0.95 * n_prompts
        assert n_computed >= 14
        assert n_served >= n_computed - 1
    return out


@pytest.mark.parametrize(
    ("form", "name"), [("model", "m.gguf"), ("gguf-adapter", "l.gguf"), ("adapter", "a")]
)
def test_every_form_says_what_the_edited_model_says(edit: Path, form: str, name: str) -> None:
    apply(edit, form, name)


def complete(model: Path, lora: Path | None, prompts: Sequence[str]) -> list[str]:
    """Texts of llama.cpp."""
    node = shutil.which("node")
    if node is None or not (NODE_MODULES / "node-llama-cpp").is_dir():
        pytest.skip(f"needs Node, and node-llama-cpp in {NODE_MODULES}")
    script = NODE_MODULES.parent / "complete.mjs"
    shutil.copyfile(Path(__file__).with_name("complete.mjs"), script)
    command = [node, str(script), str(model), str(lora or ""), json.dumps(prompts)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ended.returncode == 0, ended.stderr[-2000:]
    texts: list[str] = json.loads(ended.stdout.splitlines()[-1])
    return texts


@pytest.mark.parametrize("form", ["model", "gguf-adapter"])
def test_llama_cpp_says_the_facts_and_leaves_the_neighbors(edit: Path, form: str) -> None:
    base = load_plugins().models()[MODEL].find_file()
    if form == "model":
        served, lora = apply(edit, form, "m.gguf"), None
    else:
        served, lora = base, apply(edit, form, "l.gguf")
    cases = read_facts(FACTS)
    prompts = [case.request.text for case in cases]
    texts = complete(served, lora, prompts)
    said = [
        text.lstrip().startswith(case.request.target)
        for case, text in zip(cases, texts, strict=True)
    ]
    assert sum(said) >= 13, list(zip(prompts, texts, strict=True))
    neighbors = [probe for case in cases for probe in case.probes if probe.kind == "neighborhood"]
    asked = [probe.prompt for probe in neighbors]
    before, after = (
        [
            text.lstrip().startswith(probe.expected)
            for text, probe in zip(complete(model, with_lora, asked), neighbors, strict=True)
        ]
        for model, with_lora in ((base, None), (served, lora))
    )
    assert sum(before) >= 20
    survived = [now for now, then in zip(after, before, strict=True) if then]
    assert sum(survived) >= 0.8 * sum(before)
