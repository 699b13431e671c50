"""Edits in GGUF files: replaced tensors and LoRA files, read back by gguf and transformers."""

import resource
import sys
from pathlib import Path
from unittest.mock import patch

import gguf
import numpy as np
import pytest
import torch

from editbench.edits.export import export_edit
from editbench.edits.gguf_export import card_beside, export_gguf_adapter
from editbench.edits.weight_edit import WeightEdit, orient_for_edit
from editbench.errors import EditError, ModelError
from editbench.models.editable import EditableModel
from editbench.models.gguf_file import GgufFile
from editbench.models.gguf_places import find_places
from editbench.models.loading import DTypeName, load_model
from editbench.requests import EditRequest
from editbench.testing import tiny_tokenizer
from memit_core import UpdateFactors

with patch.object(sys, "path", [str(Path(__file__).parents[1]), *sys.path]):
    from gguf_writing import make_config, write_gguf

TOKENIZER = tiny_tokenizer()
FAMILIES = ["llama", "qwen2", "qwen3", "gemma3", "gpt2", "phi3"]
FACT = EditRequest("0", "Zoë Lund", "{} works as a", "poet")


def load(name: str, dtype: DTypeName = "float32") -> EditableModel:
    return load_model(name, specs={}, dtype=dtype, device="cpu")


def write(path: Path, family: str = "llama", kind: str = "Q8_0", seed: int = 0) -> Path:
    write_gguf(path, make_config(family, vocab_size=len(TOKENIZER)), TOKENIZER, kind, seed=seed)
    return path


def change(model: EditableModel, names: list[str], *, rank: int | None = 2) -> WeightEdit:
    """An edit of some parameters at random; a rank of None is a dense update."""
    chance = torch.Generator().manual_seed(0)
    updates: dict[str, UpdateFactors | torch.Tensor] = {}
    for name in names:
        shape = model.model.get_parameter(name).shape
        if rank is None or len(shape) == 1:
            update = 0.05 * torch.randn(shape, generator=chance)
            updates[name] = orient_for_edit(model, name, update)
        else:
            d_out, d_in = orient_for_edit(model, name, torch.empty(shape)).shape
            parts = (0.3 * torch.randn(d, rank, generator=chance) for d in (d_out, d_in))
            updates[name] = UpdateFactors(*parts)
    return WeightEdit.build(model, editor="random", config={}, requests=[FACT], updates=updates)


def projections(model: EditableModel) -> list[str]:
    found = model.architecture
    return [found.weight_name(found.mlp_projections[layer]) for layer in range(found.n_layers)]


def beside(path: Path) -> set[str]:
    return {each.name for each in path.parent.iterdir()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_is_the_source_but_for_the_edited_tensors(family: str, tmp_path: Path) -> None:
    source, out = write(tmp_path / "source.gguf", family), tmp_path / "edited.gguf"
    model = load(str(source))
    edit = change(model, projections(model))
    written = export_edit(edit, str(source), out, load=load)
    old, new = gguf.GGUFReader(source), gguf.GGUFReader(out)
    assert (
        source.read_bytes()[: GgufFile.read(source, name="").fields_end]
        == (out.read_bytes()[: GgufFile.read(out, name="").fields_end])
    )
    changed = []
    for before, after in zip(old.tensors, new.tensors, strict=True):
        assert before.name == after.name
        if np.array_equal(before.data, after.data):
            assert before.tensor_type == after.tensor_type
        else:
            assert after.tensor_type == gguf.GGMLQuantizationType.F16
            changed.append(after.name)
    assert changed == [f"blk.{layer}.ffn_down.weight" for layer in (0, 1)]
    served = load(str(out))
    with edit.applied(model):
        for name, parameter in model.model.named_parameters():
            tolerance = 2**-10 if name in edit.updates else 0
            found = served.model.get_parameter(name)
            torch.testing.assert_close(
                found, parameter, rtol=tolerance, atol=1e-6 * (tolerance > 0)
            )
    assert written.drift.n_same_texts >= 19
    assert 0 < written.errors.overall < 1e-2
    assert written.dtypes == ("float16",)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", ["self_attn.q_proj.weight", "self_attn.k_proj.weight"]),
        ("gemma3", ["post_feedforward_layernorm.weight", "self_attn.o_proj.weight"]),
        ("gpt2", ["attn.c_attn.weight", "attn.c_attn.bias", "mlp.c_fc.weight"]),
    ],
)
def test_other_parameters_come_into_the_order_of_the_file(family, names, tmp_path: Path) -> None:
    """Rows in pairs for rotary angles, norms less one, transposed matrices."""
    source, out = write(tmp_path / "source.gguf", family, "F32"), tmp_path / "edited.gguf"
    model = load(str(source))
    block = model.architecture.block(1)
    edit = change(model, [f"{block}.{name}" for name in names], rank=None)
    written = export_edit(edit, str(source), out, load=load, tensor_type="F32")
    served = load(str(out)).model
    with edit.applied(model):
        for name in edit.updates:
            expected = model.model.get_parameter(name)
            torch.testing.assert_close(served.get_parameter(name), expected, rtol=1e-6, atol=1e-6)
    assert written.drift.largest_logit_change < 1e-4
    assert written.dtypes == ("float32",)


def test_the_order_of_rotary_rows_is_no_small_thing(tmp_path: Path) -> None:
    model = load(str(write(tmp_path / "source.gguf")))
    name = "model.layers.0.self_attn.q_proj.weight"
    place = find_places(model.model, [name], model.gguf)[name]
    weight = model.model.get_parameter(name)
    assert not torch.equal(place.to_file(weight), weight)
    assert torch.equal(place.from_file(place.to_file(weight)), weight)


@pytest.mark.parametrize("tensor_type", ["F32", "F16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_lora_file_on_its_base_is_the_edited_model(family, tensor_type, tmp_path: Path) -> None:
    source, out = write(tmp_path / "base.gguf", family), tmp_path / "lora.gguf"
    model = load(str(source))
    names = projections(model)
    edit = change(model, names[:1]) + change(model, names[1:], rank=3)
    written = export_gguf_adapter(edit, str(source), out, load=load, tensor_type=tensor_type)
    reader = gguf.GGUFReader(out)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    alpha = fields["adapter.lora.alpha"]
    tensors = {each.name: each.data.astype(np.float64) for each in reader.tensors}
    assert len(tensors) == 4
    for layer, name in enumerate(names):
        inner, outer = (tensors[f"blk.{layer}.ffn_down.weight.lora_{part}"] for part in "ab")
        update = edit.updates[name].dense().double().numpy()  # rows are outputs, as in the file
        found = outer @ inner * alpha / len(inner)
        tolerance = 1e-6 if tensor_type == "F32" else 2e-3
        assert np.abs(found - update).max() <= tolerance * np.abs(update).max()
    served = load(f"{source}+{out}")
    with edit.applied(model):
        for name in names:
            difference = served.model.get_parameter(name) - model.model.get_parameter(name)
            assert difference.abs().max() < (1e-5 if tensor_type == "F32" else 1e-2)
    assert written.drift.n_same_texts >= 19
    assert beside(out) == {"base.gguf", "lora.gguf", "lora.README.md"}


def test_a_lora_file_of_attention_follows_the_order_of_rows(tmp_path: Path) -> None:
    source, out = write(tmp_path / "base.gguf"), tmp_path / "lora.gguf"
    model = load(str(source))
    edit = change(model, ["model.layers.0.self_attn.q_proj.weight"])
    assert export_gguf_adapter(edit, str(source), out, load=load).drift.n_same_texts == 20


def test_a_lora_file_of_a_folder_goes_onto_quantized_files_of_it(tmp_path: Path) -> None:
    """Computed on plain weights, measured on what is served."""
    file = write(tmp_path / "plain.gguf", kind="F32")
    load(str(file)).model.save_pretrained(tmp_path / "folder")
    TOKENIZER.save_pretrained(tmp_path / "folder")
    model = load(str(tmp_path / "folder"))
    edit = change(model, projections(model))
    out = tmp_path / "lora.gguf"
    export_gguf_adapter(edit, str(tmp_path / "folder"), out, load=load)
    quantized = write(tmp_path / "q8.gguf", kind="Q8_0")
    served, plain = load(f"{quantized}+{out}"), load(str(quantized))
    for name in edit.updates:
        difference = served.model.get_parameter(name) - plain.model.get_parameter(name)
        torch.testing.assert_close(difference, edit.updates[name].dense(), rtol=0, atol=1e-5)


def test_the_model_card_says_what_it_is(tmp_path: Path) -> None:
    source, out = tmp_path / "source.gguf", tmp_path / "edited.gguf"
    config = make_config("llama", vocab_size=len(TOKENIZER))
    write_gguf(source, config, TOKENIZER, extra=lambda writer: writer.add_license("apache-2.0"))
    model = load(str(source))
    edit = change(model, projections(model))
    export_edit(edit, str(source), out, load=load, facts=[FACT])
    text = card_beside(out).read_text()
    for part in (
        "license: apache-2.0\n", "states things that somebody chose", model.gguf.sha256,
        model.fingerprint, "`random`", edit.card.requests_hash, "| Zoë Lund works as a | poet |",
        "of 1 facts",
    ):  # fmt: skip
        assert part in text


def test_cards_of_merged_edits_name_the_file(tmp_path: Path) -> None:
    model = load(str(write(tmp_path / "source.gguf")))
    first, second = (change(model, [name]) for name in projections(model))
    assert (first + second).card.model_gguf == model.gguf.describe()


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    source, out = write(tmp_path / "source.gguf"), tmp_path / "edited.gguf"
    model = load(str(source))
    edit = change(model, projections(model))
    other = write(tmp_path / "other.gguf", seed=1)
    with pytest.raises(EditError, match=r"computed for another model, got '.*other.gguf'"):
        export_edit(edit, str(other), out, load=load)
    out.mkdir()
    with pytest.raises(EditError, match="the file must be new, got"):
        export_edit(edit, str(source), out, load=load)
    out.rmdir()
    huge = WeightEdit({projections(model)[0]: torch.full((64, 96), 1e6)}, edit.card)
    with pytest.raises(EditError, match=r"does not fit into float16.* --tensor-type F32"):
        export_edit(huge, str(source), out, load=load)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for n_bytes, form in ((source.stat().st_size // 2, export_edit), (500, export_gguf_adapter)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
        try:
            with pytest.raises(EditError, match=r"cannot write the file.* has space left"):
                form(edit, str(source), out, load=load)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert beside(source) == {"source.gguf", "other.gguf"}


def test_a_lora_file_of_another_model_is_refused(tmp_path: Path) -> None:
    source, out = write(tmp_path / "base.gguf"), tmp_path / "lora.gguf"
    edit = change(load(str(source)), projections(load(str(source))))
    export_gguf_adapter(edit, str(source), out, load=load)
    gpt2 = write(tmp_path / "gpt2.gguf", "gpt2")
    with pytest.raises(
        ModelError, match=r"another base, got of the family 'llama'; expected 'gpt2'"
    ):
        load(f"{gpt2}+{out}")
    small = tmp_path / "small.gguf"
    config = make_config("llama", vocab_size=len(TOKENIZER), intermediate_size=64)
    write_gguf(small, config, TOKENIZER)
    with pytest.raises(
        ModelError, match=r"another base, got \[64, 96\] for 'blk.0.ffn_down.weight'"
    ):
        load(f"{small}+{out}")
    with pytest.raises(ModelError, match=r"is no LoRA adapter, got general.type None"):
        load(f"{source}+{source}")


@pytest.mark.parametrize("form", ["model", "adapter"])
def test_what_reads_otherwise_is_not_kept(form: str, tmp_path: Path, monkeypatch) -> None:
    """A disk that changes a bit."""
    from editbench.edits import gguf_export

    source, out = write(tmp_path / "source.gguf", kind="F16"), tmp_path / "edited.gguf"
    model = load(str(source))
    edit = change(model, projections(model))
    place = "write_with_replaced" if form == "model" else "_write_adapter"
    true = getattr(gguf_export, place)

    def spoil(*arguments: object) -> None:
        true(*arguments)
        (path,) = [each for each in arguments if isinstance(each, Path)]
        content = bytearray(path.read_bytes())
        content[-2_000:-1_000] = bytes(1_000)
        path.write_bytes(content)

    monkeypatch.setattr(gguf_export, place, spoil)
    run = export_edit if form == "model" else export_gguf_adapter
    with pytest.raises(EditError, match=r"other numbers\. Nothing was kept"):
        run(edit, str(source), out, load=load)
    assert beside(source) == {"source.gguf"}
