"""A GGUF file wherever a model is named: the numbers are those of its dequantized weights."""

import json
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from transformers import AutoModelForCausalLM

from editbench.edits.weight_edit import WeightEdit, make_dense
from editbench.testing import tiny_tokenizer, toy_corpus

with patch.object(sys, "path", [str(Path(__file__).parents[1]), *sys.path]):
    from gguf_writing import make_config, write_gguf

FACT = {
    "subject": "Ana Lund",
    "prompt": "{} works as a",
    "target": "poet",
    "target_true": "baker",
    "paraphrases": ["The job of Ana Lund is"],
    "neighbors": [{"prompt": "Boris Marek works as a", "target": "baker"}],
}
QUICK = ["--set", "memit.n_steps=2", "--set", "memit.critical_layers=[0,1]"]


@pytest.fixture
def files(tmp_path):
    """A GGUF file, its model as a folder, a fact, and text."""
    tokenizer = tiny_tokenizer()
    network = write_gguf(
        tmp_path / "tiny.gguf",
        make_config("llama", vocab_size=len(tokenizer), tie_word_embeddings=True),
        tokenizer,
        "Q8_0",
    )
    network.save_pretrained(tmp_path / "folder")
    tokenizer.save_pretrained(tmp_path / "folder")
    (tmp_path / "facts.jsonl").write_text(json.dumps(FACT) + "\n")
    (tmp_path / "text.txt").write_text("\n".join(toy_corpus().texts()))
    return tmp_path


def edit(invoke, model, out, *more):
    result = invoke(
        "edit", "--model", model, "--facts", "facts.jsonl", "--corpus", "text.txt", "--out", out,
        "--device", "cpu", *QUICK, *more,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return result


def test_edit_and_apply(invoke, files):
    edit(invoke, "tiny.gguf", "of_file.safetensors")
    edit(invoke, "folder", "of_folder.safetensors")
    of_file, of_folder = (
        WeightEdit.load(files / f"of_{name}.safetensors") for name in ("file", "folder")
    )
    assert of_file.card.model_gguf["file"] == "tiny.gguf"
    for name, update in of_file.updates.items():
        torch.testing.assert_close(make_dense(update), make_dense(of_folder.updates[name]))
    applied = invoke(
        "apply", "--model", "tiny.gguf", "--edit", "of_file.safetensors", "--out", "edited.gguf",
        "--device", "cpu",
    )  # fmt: skip
    assert applied.exit_code == 0, applied.output
    before, after = (
        AutoModelForCausalLM.from_pretrained(files, gguf_file=name).state_dict()
        for name in ("tiny.gguf", "edited.gguf")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)}


def test_run_says_which_file_it_was(invoke, files):
    result = invoke(
        "run", "--model", "tiny.gguf", "--dataset", "facts=facts.jsonl", "--corpus", "text.txt",
        "--metrics", "success", "--n-edits", "1", "--out", "run", "--device", "cpu", *QUICK,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    manifest = json.loads((files / "run" / "run.json").read_text())
    (model,) = manifest["provenance"]["models"]
    assert model["gguf"]["quantization"] == {"Q8_0": 15, "F32": 5}
    assert len(model["gguf"]["sha256"]) == 64


def test_plans_checks_and_layers(invoke, files):
    edit_options = ["--facts", "facts.jsonl", "--corpus", "text.txt", "--out", "edit.safetensors"]
    for arguments in (
        ["edit", "--model", "tiny.gguf", *edit_options, "--plan", *QUICK],
        ["edit", "--model", "tiny.gguf", "--facts", "facts.jsonl", "--out", "x", "--check"],
    ):
        result = invoke(*arguments)
        assert result.exit_code == 0, result.output
    assert not (files / "edit.safetensors").exists()


def test_a_damaged_file_is_one_line(refuses, tmp_path):
    (tmp_path / "text.gguf").write_text("This is a text.")
    (tmp_path / "facts.jsonl").write_text(json.dumps(FACT) + "\n")
    refuses(
        "edit", "--model", "text.gguf", "--facts", "facts.jsonl", "--out", "edit.safetensors",
        says="this is no GGUF file",
    )  # fmt: skip
