"""What `editbench apply` writes loads in the transformers that the source was made for."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from editbench.edits.export import export_edit
from editbench.edits.weight_edit import WeightEdit
from editbench.models.loading import load_model
from editbench.requests import EditRequest
from editbench.testing import tiny_tokenizer

# The last versions before 5, and what they ask for; all else is shared with this environment.
PACKAGES = ("transformers==4.57.1", "huggingface_hub==0.36.0", "tokenizers==0.22.1")
TEXT = "Ana Lund works as a baker."
WEIGHT = "model.layers.1.mlp.down_proj.weight"

ASK = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
ids = AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[2], return_tensors="pt").input_ids
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    logits = model(ids).logits
said = {"version": transformers.__version__, "ids": ids.tolist(), "logits": logits.tolist()}
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def ask_older(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, object]]:
    """Loads a folder in transformers 4.57, and tells what it says about the text."""
    own = tmp_path_factory.mktemp("packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(own)]
    installed = subprocess.run([*pip, *PACKAGES], capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        pytest.skip(f"needs {', '.join(PACKAGES)} from PyPI: {installed.stderr[-200:]}")

    def ask(folder: Path) -> dict[str, object]:
        found = subprocess.run(
            [sys.executable, "-c", ASK, str(folder), TEXT],
            env={**os.environ, "PYTHONPATH": str(own)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)

    return ask


@pytest.fixture
def older_folder(tmp_path: Path) -> Path:
    """A Llama as published for transformers 4, in bfloat16: `rope_theta` at top level."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 50.0}, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LlamaForCausalLM(config).bfloat16()
    folder = tmp_path / "source"
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    del written["rope_parameters"]
    older = {"rope_theta": 50.0, "rope_scaling": None, "torch_dtype": written.pop("dtype")}
    (folder / "config.json").write_text(
        json.dumps({**written, **older, "transformers_version": "4.47.0"})
    )
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_the_edited_model_is_the_same_in_both(ask_older, older_folder, tmp_path, dtype) -> None:
    model = load_model(str(older_folder), specs={}, device="cpu")
    update = 0.3 * torch.randn(32, 48, generator=torch.Generator().manual_seed(0))
    edit = WeightEdit.build(
        model,
        editor="random",
        config={},
        requests=[EditRequest("0", "Ana Lund", "{} works as a", "poet")],
        updates={WEIGHT: update},
    )

    def load(name: str, dtype: str) -> object:
        return load_model(name, specs={}, dtype=dtype, device="cpu")

    out = tmp_path / "edited"
    export_edit(edit, str(older_folder), out, load=load, dtype=dtype)
    older = ask_older(out)
    assert older["version"] == "4.57.1"
    newer = load(str(out), "float32")
    assert older["ids"] == [newer.tokens.encode(TEXT)]
    with torch.no_grad():
        expected = newer.model(torch.tensor(older["ids"])).logits
    torch.testing.assert_close(torch.tensor(older["logits"]), expected, rtol=1e-4, atol=1e-4)
    plain = torch.tensor(ask_older(older_folder)["logits"])
    assert (plain - expected).abs().max() > 0.1
