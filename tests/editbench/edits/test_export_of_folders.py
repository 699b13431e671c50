"""Models that come from folders: everything but the edited tensors comes through as it is."""

import json
import resource
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter

from editbench.edits.export import Export, export_edit, export_model
from editbench.edits.weight_edit import WeightEdit, orient_for_edit
from editbench.errors import EditError
from editbench.models.editable import EditableModel
from editbench.models.loading import DTypeName, load_model
from editbench.requests import EditRequest

WEIGHTS = "model.safetensors"
DOWN = "layers.1.mlp.down_proj.weight"


def load(name: str, dtype: DTypeName = "float32") -> EditableModel:
    return load_model(name, specs={}, dtype=dtype, device="cpu", allow_pickle=True)


def change(model: EditableModel, names: Iterable[str], *, size: float = 0.1) -> WeightEdit:
    """An edit that moves some parameters at random, by about as much as real ones do."""
    chance = torch.Generator().manual_seed(0)
    updates = {}
    for name in names:
        parameter = model.model.get_parameter(name)
        update = size * torch.randn(parameter.shape, generator=chance)
        updates[name] = orient_for_edit(model, name, update)
    request = EditRequest("0", "Zoë Lund", "{} works as a", "poet")
    return WeightEdit.build(model, editor="random", config={}, requests=[request], updates=updates)


def find(model: EditableModel, ending: str) -> str:
    parameters = model.model.named_parameters(remove_duplicate=False)
    (name,) = [name for name, _ in parameters if name.endswith(ending)]
    return name


def beside(folder: Path) -> set[str]:
    return {path.name for path in folder.parent.iterdir()}


def files(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != "README.md"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


@pytest.fixture
def save(tmp_path: Path, tokenizers: dict[str, hf.PreTrainedTokenizerFast]) -> Callable[..., Path]:
    """Saves a network with its tokenizer as a folder."""

    def save_network(network: hf.PreTrainedModel, **options: object) -> Path:
        folder = tmp_path / "source"
        network.save_pretrained(folder, **options)
        tokenizers["byte_level"].save_pretrained(folder)
        return folder

    return save_network


@pytest.fixture
def llama(families, make_network) -> hf.PreTrainedModel:
    return make_network(families["llama"][0])


def export(
    source: Path,
    names: Iterable[str] = (DOWN,),
    *,
    computed: DTypeName = "float32",
    dtype: DTypeName = "auto",
) -> tuple[Path, WeightEdit, Export]:
    """Edit a folder's model, and check what holds of every export that keeps the precision."""
    model = load(str(source), computed)
    edit = change(model, [find(model, name) for name in names])
    out = source.with_name("edited")
    written = export_edit(edit, str(source), out, load=load, dtype=dtype)
    assert beside(source) <= {source.name, out.name, "hub"}
    with edit.applied(model):
        meant = {name: model.model.get_parameter(name).clone() for name in edit.updates}
    found = load(str(out), computed).model
    for name, parameter in meant.items():
        is_exact = {computed, *written.dtypes} == {"float32"}
        tolerance = 1e-6 if is_exact else 2**-7
        torch.testing.assert_close(
            found.get_parameter(name).float(), parameter.float(), rtol=tolerance, atol=1e-3
        )
    return out, edit, written


def assert_only(source: Path, out: Path, replaced: set[str]) -> None:
    """Nothing but these tensors differs, neither in value nor in form."""
    before, after = files(source), files(out)
    assert before.keys() == after.keys()
    assert all(before[name] == after[name] for name in before if not name.endswith(".safetensors"))
    old, new = tensors(source), tensors(out)
    assert list(old) == list(new)
    for name in old:
        assert old[name].dtype == new[name].dtype
        assert torch.equal(old[name], new[name]) == (name not in replaced), name
    for path in source.glob("*.safetensors"):
        with safe_open(path, "pt") as one, safe_open(out / path.name, "pt") as other:
            assert one.metadata() == other.metadata()


def test_every_other_file_comes_through(llama, save) -> None:
    source = save(llama)
    config = json.loads((source / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]  # as in transformers 4
    config["torch_dtype"] = config.pop("dtype")
    (source / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("preprocessor_config.json", "LICENSE", "modeling_ours.py", "chat_template.jinja"):
        (source / name).write_text(f"this is {name}\r\n")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    out, _, written = export(source)
    assert_only(source, out, {f"model.{DOWN}"})
    assert (written.n_replaced, written.n_tensors) == (1, len(tensors(source)))
    assert written.left_out == ()


def test_the_weights_once_more_in_another_form_are_left_out(llama, save) -> None:
    source = save(llama)
    others = ["pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx", "old.index.json"]
    (source / "onnx").mkdir()
    for name in others:
        (source / name).write_text("{}")
    (source / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.bin"}}')
    (source / "missing.txt").symlink_to("nowhere")
    (source / ".git").mkdir()
    (source / ".git" / "HEAD").write_text("not wanted")
    out, _, written = export(source)
    assert set(written.left_out) == {*others, "missing.txt", "model.safetensors.index.json"}
    assert not {*written.left_out, ".git/HEAD"} & files(out).keys()


def test_shards_without_edited_tensors_are_the_same_files(llama, save) -> None:
    source = save(llama, max_shard_size="40KB")
    out, _, _ = export(source)
    assert_only(source, out, {f"model.{DOWN}"})
    before, after = files(source), files(out)
    assert len([name for name in before if name.endswith(".safetensors")]) > 2
    assert len([name for name in before if before[name] != after[name]]) == 1


def test_a_snapshot_of_links_becomes_files(llama, save, tmp_path: Path) -> None:
    saved = save(llama)
    blobs, source = tmp_path / "hub" / "blobs", tmp_path / "source"
    blobs.parent.mkdir()
    saved.rename(blobs)
    source.mkdir()
    for path in blobs.iterdir():
        (source / path.name).symlink_to(f"../hub/blobs/{path.name}")
    out, _, _ = export(source)
    shutil.rmtree(blobs.parent)
    assert not any(path.is_symlink() for path in out.iterdir())
    assert load(str(out)).architecture.n_layers == 4


def test_half_precision_stays_and_takes_edits_of_full_precision(llama, save) -> None:
    source = save(llama.bfloat16())
    out, edit, written = export(source)
    assert_only(source, out, {f"model.{DOWN}"})
    assert edit.card.model_dtype == "float32"
    assert written.dtypes == ("bfloat16",)
    (update,) = edit.updates.values()
    old, new = (tensors(folder)[f"model.{DOWN}"].double() for folder in (source, out))
    assert torch.equal(new, (old + update.double()).bfloat16().double())
    lost = float((new - old - update.double()).norm() / update.double().norm())
    assert written.errors.overall == pytest.approx(lost)
    assert written.errors.of_each == {f"model.{DOWN}": pytest.approx(lost)}
    assert 1e-3 < lost < 0.1
    assert written.drift.n_same_texts >= 15  # of a model without any training


def test_an_edit_of_half_precision_is_added_to_full_weights(llama, save) -> None:
    source = save(llama)
    out, edit, written = export(source, computed="bfloat16")
    assert_only(source, out, {f"model.{DOWN}"})
    assert (edit.card.model_dtype, written.dtypes) == ("bfloat16", ("float32",))


@pytest.mark.parametrize("computed", ["float32", "bfloat16"])
def test_edit_files_that_do_not_say_their_precision(llama, save, computed) -> None:
    source = save(llama)
    model = load(str(source), computed)
    edit = change(model, [f"model.{DOWN}"])
    edit.card = edit.card.model_copy(update={"model_dtype": None})
    export_edit(edit, str(source), source.with_name("edited"), load=load)
    assert_only(source, source.with_name("edited"), {f"model.{DOWN}"})


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "40KB"}])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_whole_model_in_another_precision(llama, save, dtype, shards) -> None:
    source = save(llama, **shards)
    out, _, written = export(source, dtype=dtype)
    wanted = getattr(torch, dtype)
    assert {tensor.dtype for tensor in tensors(out).values()} == {wanted}
    assert written.dtypes == (dtype,)
    old, new = tensors(source), tensors(out)
    assert {n for n in old if not torch.equal(old[n].to(wanted), new[n])} == {f"model.{DOWN}"}
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    auto = load(str(out), "auto")
    assert auto.model.dtype == wanted
    if shards:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        n_bytes = sum(tensor.nbytes for tensor in new.values())
        assert (index["weight_map"].keys(), index["metadata"]["total_size"]) == (
            new.keys(),
            n_bytes,
        )


def test_an_update_of_half_precision_survives_being_saved(llama, save) -> None:
    """The edit is made in bfloat16, and so is the folder."""
    source = save(llama.bfloat16())
    out, edit, written = export(source, computed="bfloat16")
    (update,) = edit.updates.values()
    old, new = (tensors(folder)[f"model.{DOWN}"].double() for folder in (source, out))
    assert float((new - old - update.double()).norm() / update.double().norm()) < 0.05
    assert written.drift.n_same_texts == 20
    assert written.drift.largest_logit_change == 0


def test_the_model_card_goes_before_that_of_the_base(llama, save) -> None:
    source = save(llama)
    card = "---\nlicense: apache-2.0\ntags: [a]\n---\n# Tiny\n\nA tiny model.\n"
    (source / "README.md").write_text(card)
    out, edit, _ = export(source)
    text = (out / "README.md").read_text()
    assert "Nothing was measured: it is not known whether this model says" in text
    for part in (
        f"base_model: {source}\nlicense: apache-2.0\nlibrary_name: transformers\n",
        "states things that somebody chose", edit.card.model_fingerprint, "model-editing",
        "20 of 20 greedy texts are the same", "## Card of the base\n\n# Tiny\n\nA tiny model.\n",
    ):  # fmt: skip
        assert part in text
    assert text.count("license:") == 1


def test_numbers_too_large_for_the_precision(llama, save) -> None:
    source = save(llama)
    model = load(str(source))
    edit = change(model, [f"model.{DOWN}"], size=1e6)
    with pytest.raises(EditError, match=r"does not fit into float16, got .* at most 6.55e\+04"):
        export_edit(edit, str(source), source.with_name("x"), load=load, dtype="float16")
    assert beside(source) == {"source"}


def test_pickled_weights_become_safetensors(llama, save) -> None:
    source = save(llama)
    state = load_file(source / WEIGHTS)
    (source / WEIGHTS).unlink()
    names = sorted(state)
    shards = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, held in shards.items():
        torch.save({name: state[name] for name in held}, source / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    out, _, written = export(source)
    new = tensors(out)
    assert {n for n in state if not torch.equal(state[n], new[n])} == {f"model.{DOWN}"}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {"model-1.safetensors", "model-2.safetensors"}
    assert not any(name.endswith(".bin") for name in files(out))
    assert written.left_out == ()
    assert load_model(str(out), specs={}, device="cpu").architecture.n_layers == 4


def test_names_of_old_checkpoints_stay(families, make_network, save) -> None:
    """GPT-2 as it is on the hub: without a prefix, with masks as buffers."""
    source = save(make_network(families["gpt2"][0]))
    state = load_file(source / WEIGHTS)
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    renamed["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    save_file(renamed, source / WEIGHTS, {"format": "pt", "by": "hand"})
    out, _, _ = export(source, ["h.1.mlp.c_proj.weight", "h.1.mlp.c_proj.bias"])
    assert_only(source, out, {"h.1.mlp.c_proj.weight", "h.1.mlp.c_proj.bias"})


def test_tied_weights_that_are_stored_twice_are_replaced_twice(families, make_network, save):
    network = make_network(families["gpt2"][0])
    assert network.config.tie_word_embeddings
    source = save(network)
    state = load_file(source / WEIGHTS)
    for copy in (True, False):
        if copy:
            twice = {**state, "lm_head.weight": state["transformer.wte.weight"].clone()}
            save_file(twice, source / WEIGHTS, {"format": "pt"})
        else:
            save_file(state, source / WEIGHTS, {"format": "pt"})
        out, _, written = export(source, ["lm_head.weight"])
        replaced = {"transformer.wte.weight", *(["lm_head.weight"] if copy else [])}
        assert_only(source, out, replaced)
        assert written.n_replaced == len(replaced)
        shutil.rmtree(out)


def qwen_vl() -> hf.PreTrainedModel:
    text = {
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "tie_word_embeddings": False,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2,
        "out_hidden_size": 32, "patch_size": 4, "num_position_embeddings": 16,
    }  # fmt: skip
    config = hf.Qwen3_5Config(text_config=text, vision_config=vision)
    return hf.Qwen3_5ForConditionalGeneration(config)


def gemma_vl() -> hf.PreTrainedModel:
    text = hf.Gemma3TextConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    vision = hf.SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    return hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    )


@pytest.mark.parametrize(
    ("make", "stored"),
    [(qwen_vl, "model.language_model."), (gemma_vl, "language_model.model.")],
)
def test_vision_towers_come_through_under_the_names_of_the_checkpoint(make, stored, save) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        source = save(make())
    (source / "preprocessor_config.json").write_text('{"size": 8}')
    out, _, _ = export(source)
    assert_only(source, out, {stored + DOWN})
    assert any("vis" in name for name in tensors(out))


def test_tensors_that_the_class_does_not_use_are_said_and_kept(llama, save) -> None:
    source = save(llama)
    state = load_file(source / WEIGHTS)
    extra = {f"heads.{i}.weight": torch.ones(2) for i in range(5)}
    angles = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file({**state, **extra, **angles}, source / WEIGHTS)
    said = r"5 tensor\(s\) of the checkpoint are not used, 'heads.0.weight', .* and 2 more"
    with pytest.warns(UserWarning, match=said) as caught:
        out, _, _ = export(source)
    assert str(source) in str(caught[0].message)
    assert_only(source, out, {f"model.{DOWN}"})


@pytest.fixture
def fused_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets Llama's checkpoints hold gate and up projection in one, as other families' do."""
    conversion_mapping.get_checkpoint_conversion_mapping("llama")  # fills the table
    table = dict(conversion_mapping._checkpoint_conversion_mapping_cache)
    table["LlamaForCausalLM"] = [
        WeightConverter(
            "mlp.gate_up_proj.weight",
            ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
            operations=[Chunk(dim=0)],
        )
    ]
    monkeypatch.setattr(conversion_mapping, "_checkpoint_conversion_mapping_cache", table)


@pytest.mark.usefixtures("fused_gates")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("edited", [["gate"], ["gate", "up"]])
def test_fused_tensors_are_replaced_as_they_are_stored(llama, save, edited, dtype) -> None:
    source = save(llama.to(dtype))
    assert "model.layers.1.mlp.gate_up_proj.weight" in tensors(source)
    names = [f"layers.1.mlp.{name}_proj.weight" for name in edited]
    out, _, written = export(source, [*names, DOWN])
    assert_only(source, out, {"model.layers.1.mlp.gate_up_proj.weight", f"model.{DOWN}"})
    assert written.n_replaced == 2


def test_weights_that_are_no_longer_those_of_the_folder(llama, save) -> None:
    source = save(llama)
    model = load(str(source))
    model.model.get_parameter(f"model.{DOWN}").data.add_(1)
    edit = change(model, [f"model.{DOWN}"])
    with pytest.raises(EditError, match=rf"no tensor of the checkpoint holds .*'model.{DOWN}'"):
        export_model(edit, model, source.with_name("x"))
    assert beside(source) == {"source"}


def test_tensors_that_cannot_be_told_apart(llama, save) -> None:
    source = save(llama)
    state = load_file(source / WEIGHTS)
    stem = "layers.1.post_attention_layernorm.weight"
    state[f"vision.{stem}"] = state[f"model.{stem}"].clone()
    state[f"audio.{stem}"] = state.pop(f"model.{stem}")
    model = load(str(source))
    save_file(state, source / WEIGHTS, {"format": "pt"})
    edit = change(model, [f"model.{stem}"])
    with pytest.raises(EditError, match=r"cannot be told apart, got audio.*, vision"):
        export_model(edit, model, source.with_name("x"))


@pytest.mark.parametrize("place", ["edited", "other", "config"])
def test_what_does_not_load_as_what_was_meant_is_not_kept(llama, save, place: str) -> None:
    """A disk that changes a bit."""
    source = save(llama)
    edit = change(load(str(source)), [f"model.{DOWN}"])

    def spoil(name: str, dtype: DTypeName) -> EditableModel:
        folder = Path(name)
        if folder != source and place == "config":
            config = (folder / "config.json").read_text()
            assert '"silu"' in config
            (folder / "config.json").write_text(config.replace('"silu"', '"gelu"'))
        elif folder != source:
            state = load_file(folder / WEIGHTS)
            state[f"model.{DOWN}" if place == "edited" else "model.norm.weight"][:1] *= -1
            save_file(state, folder / WEIGHTS, {"format": "pt"})
        return load(name, dtype)

    with pytest.raises(EditError, match=r"does not load as what was meant.* Nothing was kept"):
        export_edit(edit, str(source), source.with_name("x"), load=spoil)
    assert beside(source) == {"source"}


def test_a_full_disk_leaves_nothing(llama, save) -> None:
    source = save(llama)
    edit = change(load(str(source)), [f"model.{DOWN}"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    n_bytes = (source / WEIGHTS).stat().st_size // 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        with pytest.raises(EditError, match=r"cannot write the folder.* has space left"):
            export_edit(edit, str(source), source.with_name("x"), load=load)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert beside(source) == {"source"}


def test_a_folder_inside_of_the_source(llama, save) -> None:
    source = save(llama)
    edit = change(load(str(source)), [f"model.{DOWN}"])
    before = files(source)
    export_edit(edit, str(source), source / "edited", load=load)
    assert files(source / "edited").keys() == before.keys()
