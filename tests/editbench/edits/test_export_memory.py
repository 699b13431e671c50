"""Whole models are written without a second copy in memory, whatever form they are written in."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf

from editbench.edits.weight_edit import WeightEdit
from editbench.models.loading import load_model
from editbench.requests import EditRequest
from editbench.testing import tiny_tokenizer
from memit_core import UpdateFactors

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc"
    ),
]

_MEASURE = """
import gc, json, sys
from pathlib import Path
from editbench.edits.adapter_export import export_adapter
from editbench.edits.export import export_edit
from editbench.edits.weight_edit import WeightEdit
from editbench.models.loading import load_model

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(field + ":")]
    return 1024 * int(line.split()[1])

def load(name, dtype):
    return load_model(name, specs={}, dtype=dtype, device="cpu")

source, edit, out, form = sys.argv[1:]
gc.disable()  # whatever is held by a ring is held when the next model comes
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
if form == "load":
    load(source, "bfloat16").fingerprint
elif form == "adapter":
    export_adapter(WeightEdit.load(Path(edit)), source, Path(out), load=load)
else:
    export_edit(WeightEdit.load(Path(edit)), source, Path(out), load=load)
print(json.dumps(memory("VmHWM") - before))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 1.1 GB in bfloat16, in shards of 200 MB, with an edit of rank 8 beside."""
    folder = tmp_path_factory.mktemp("models") / "large"
    tokenizer = tiny_tokenizer()
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device("meta"):
        network = hf.LlamaForCausalLM(config)
    network = network.to(torch.bfloat16).to_empty(device="cpu")
    network.init_weights()
    for module in network.modules():  # the angles have no place in files
        if hasattr(module, "inv_freq"):
            module.inv_freq = hf.models.llama.modeling_llama.LlamaRotaryEmbedding(config).inv_freq
    network.save_pretrained(folder, max_shard_size="200MB")
    tokenizer.save_pretrained(folder)
    del network
    gc.collect()
    model = load_model(str(folder), specs={}, dtype="bfloat16", device="cpu")
    updates = {}
    for layer in (3, 4, 5):
        name = f"{model.architecture.projection(layer, 'mlp')}.weight"
        d_out, d_in = model.model.get_parameter(name).shape
        updates[name] = UpdateFactors(0.01 * torch.randn(d_out, 8), 0.1 * torch.randn(d_in, 8))
    request = EditRequest("0", "Zoë Lund", "{} works as a", "poet")
    edit = WeightEdit.build(model, editor="random", config={}, requests=[request], updates=updates)
    edit.save(folder.parent / "edit.safetensors")
    return folder


def peak_of(form: str, source: Path, out: Path) -> int:
    """Bytes that a process of its own takes at most, beyond what it has imported."""
    arguments = [str(source), str(source.parent / "edit.safetensors"), str(out), form]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *arguments], capture_output=True, text=True, check=True
    )
    return int(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def loaded(source: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    return peak_of("load", source, tmp_path_factory.mktemp("unused"))


@pytest.mark.parametrize("form", ["model", "adapter"])
def test_no_second_copy(form: str, source: Path, loaded: int, tmp_path: Path) -> None:
    n_bytes = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    assert len(list(source.glob("*.safetensors"))) > 4
    assert n_bytes > 1e9
    assert loaded < 1.5 * n_bytes
    # What is edited is worked on in float64, a tensor at a time; a second copy would be n_bytes.
    assert peak_of(form, source, tmp_path / "out") < loaded + 0.75 * n_bytes
