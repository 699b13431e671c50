"""``apply --as``: adapters and GGUF files from the command line."""

import json
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from editbench.testing import tiny_tokenizer

with patch.object(sys, "path", [str(Path(__file__).parents[1]), *sys.path]):
    from gguf_writing import make_config, write_gguf


@pytest.fixture
def gguf_file(tmp_path):
    config = make_config("gpt2", vocab_size=len(tiny_tokenizer()))
    write_gguf(tmp_path / "base.gguf", config, tiny_tokenizer(), "Q8_0")
    return "base.gguf"


@pytest.fixture
def edit(invoke, nudging, facts_file):
    """Edits a model, as ``e``."""

    def make(model, *options):
        arguments = ["--model", model, "--facts", facts_file, "--editor", "nudge", "--out", "e"]
        result = invoke("edit", *arguments, *options, plugins=[nudging])
        assert result.exit_code == 0, result.output

    return make


def test_an_adapter_is_written_and_measured_as_a_model(
    invoke, edit, nudging, model_folder, facts_file, tmp_path
):
    edit(model_folder)
    apply = ["apply", "--model", model_folder, "--edit", "e", "--as", "adapter"]
    result = invoke(*apply, "--out", "a", "--max-rank", 24)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    changed, drift, wrote = result.stdout.splitlines()
    assert changed.startswith("Changes 1 of ")
    assert "26 of 26 greedy texts are the same" in drift
    assert "of 6 facts" in drift
    assert wrote.startswith("Wrote a: ")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    run = ["run", "--model", f"{model_folder}+a", "--editor", "nudge", "--out", "r"]
    run += ["--dataset", f"facts={facts_file}", "--n-edits", 2, "--metrics", "success"]
    result = invoke(*run, plugins=[nudging])
    assert result.exit_code == 0, result.output
    (model,) = json.loads((tmp_path / "r" / "run.json").read_text())["provenance"]["models"]
    (adapter,) = model["adapters"]
    assert adapter["file"] == "a"
    assert len(adapter["sha256"]) == 64


def test_a_rank_that_is_cut_is_said(invoke, edit, refuses, model_folder):
    edit(model_folder)
    apply = ["apply", "--model", model_folder, "--edit", "e", "--as", "adapter", "--out", "a"]
    refuses(*apply, "--max-rank", 2, says="has rank 24; expected at most 2. Allow more")
    result = invoke(*apply, "--max-rank", 2, "--truncate")
    assert result.exit_code == 0, result.output
    assert "what was cut off moves the update by" in result.stdout
    assert "Warning: little of the update is left at this rank." in result.stderr


def test_gguf_files_stay_gguf_files(invoke, edit, gguf_file, tmp_path):
    edit(gguf_file)
    apply = ["apply", "--model", gguf_file, "--edit", "e"]
    for form, out, kind in (("model", "m.gguf", "float16"), ("gguf-adapter", "l.gguf", "float32")):
        result = invoke(*apply, "--as", form, "--out", out)
        assert result.exit_code == 0, result.output
        assert f"tensors, in {kind}" in result.stdout
        assert "greedy texts are the same" in result.stdout
    names = {path.name for path in tmp_path.iterdir()} - {"cache"}
    assert names == {"base.gguf", "e", "m.gguf", "m.README.md", "l.gguf", "l.README.md"}
    result = invoke(*apply, "--out", "m32.gguf", "--tensor-type", "F32")
    assert "tensors, in float32" in result.stdout


def test_bad_input_is_one_line(edit, refuses, model_folder, other_model_folder, gguf_file):
    edit(model_folder)
    apply = ["apply", "--model", model_folder, "--edit", "e"]
    adapter = [*apply, "--as", "adapter", "--out", "a"]
    lora = [*apply, "--as", "gguf-adapter", "--out"]
    other = ["apply", "--edit", "e", "--out", "x", "--model"]
    refuses(*other, other_model_folder, says="computed for another model")
    refuses(*other, gguf_file, says="computed for another model")
    refuses(*other, gguf_file, "--as", "gguf-adapter", says="computed for another model")
    refuses(*adapter, "--tensor-type", "F16", says="--tensor-type: it is of GGUF files")
    refuses(*adapter, "--dtype", "bfloat16", says="--dtype: an adapter leaves its base as it is")
    refuses(*apply, "--out", "x", "--truncate", says="--truncate: a whole model has no rank")
    refuses(*lora, "e", says="--out: expected a new file, got 'e'")
    refuses(*lora, "no/x", says="--out: there is no such folder, got 'no'")
    refuses(*apply, "--as", "adapter", "--out", "e", says="--out: expected a new or empty folder")
    model = f"{model_folder}+nowhere"
    refuses("apply", "--model", model, "--edit", "e", "--out", "x", says="no adapter after '+'")
