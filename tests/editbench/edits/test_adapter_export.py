"""Edits as PEFT adapters: what peft puts on the base says what the edited model says."""

import json
import resource
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import transformers as hf
from peft import PeftModel
from safetensors.torch import load_file, save_file

from editbench.edits.adapter_export import export_adapter
from editbench.edits.exported import Export
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import EditError, ModelError
from editbench.models.editable import EditableModel
from editbench.models.loading import DTypeName, load_model
from editbench.requests import EditRequest
from memit_core import UpdateFactors

# peft asks transformers for what has got another name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
WEIGHTS = "adapter_model.safetensors"
FACT = EditRequest("0", "Zoë Lund", "{} works as a", "poet")


def load(name: str, dtype: DTypeName = "float32") -> EditableModel:
    return load_model(name, specs={}, dtype=dtype, device="cpu")


def change(model: EditableModel, ranks: Mapping[int, int | None], seed: int = 0) -> WeightEdit:
    """An edit of layers' MLP projections, at random; a rank of None is a dense update."""
    chance = torch.Generator().manual_seed(seed)
    updates: dict[str, UpdateFactors | torch.Tensor] = {}
    for layer, rank in ranks.items():
        name = model.architecture.weight_name(model.architecture.mlp_projections[layer])
        d_in, shape = model.d_key(layer), model.model.get_parameter(name).shape
        d_out = shape.numel() // d_in
        if rank is None:
            updates[name] = 0.05 * torch.randn(d_out, d_in, generator=chance)
            continue
        parts = (0.2 * torch.randn(d, rank, generator=chance) for d in (d_out, d_in))
        updates[name] = UpdateFactors(*parts)
    return WeightEdit.build(model, editor="random", config={}, requests=[FACT], updates=updates)


@pytest.fixture
def base(
    tmp_path: Path,
    tokenizers: Mapping[str, hf.PreTrainedTokenizerFast],
    families: Mapping[str, tuple],
    make_network: Callable[..., hf.PreTrainedModel],
) -> Callable[..., Path]:
    """Saves a tiny model of a family as a folder."""

    def save(family: str = "llama", seed: int = 0, name: str = "base") -> Path:
        make_network(families[family][0], seed).save_pretrained(tmp_path / name)
        tokenizers["byte_level"].save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def export(edit: WeightEdit, base: Path, **options: object) -> tuple[Path, Export]:
    out = base.with_name("adapter")
    return out, export_adapter(edit, str(base), out, load=load, **options)


@torch.no_grad()
def logits(network: torch.nn.Module, base: Path) -> torch.Tensor:
    inputs = hf.AutoTokenizer.from_pretrained(base)("Ana Lund works as a", return_tensors="pt")
    return network(input_ids=inputs["input_ids"]).logits


def edited_logits(model: EditableModel, edit: WeightEdit, base: Path) -> torch.Tensor:
    with edit.applied(model):
        return logits(model.model, base)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox", "qwen2", "gemma3"])
def test_peft_makes_the_edited_model_of_the_base(base, family: str) -> None:
    folder = base(family)
    model = load(str(folder))
    edit = change(model, {1: 2, 2: 5})
    out, written = export(edit, folder)
    served = PeftModel.from_pretrained(hf.AutoModelForCausalLM.from_pretrained(folder), str(out))
    expected = edited_logits(model, edit, folder)
    assert float((logits(served, folder) - expected).abs().max()) <= 1e-4
    assert float((logits(model.model, folder) - expected).abs().max()) > 1e-2
    drift = written.drift
    assert (drift.n_same_texts, drift.n_prompts) == (20, 20)
    assert drift.largest_logit_change <= 1e-4
    assert written.errors.overall == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] == (family == "gpt2")
    assert config["base_model_name_or_path"] == str(folder)
    assert (config["r"], list(config["rank_pattern"].values())) == (5, [2])
    assert config["alpha_pattern"] == config["rank_pattern"]


def test_the_adapter_is_a_model_by_itself_and_with_its_base(base, tmp_path: Path) -> None:
    folder = base()
    model = load(str(folder))
    edit = change(model, {1: 2})
    out, _ = export(edit, folder)
    with edit.applied(model):
        expected = model.model.get_parameter("model.layers.1.mlp.down_proj.weight").clone()
    for name in (str(out), f"{folder}+{out}"):
        served = load(name)
        assert (served.name, served.adapters) == (name, (out,))
        found = served.model.get_parameter("model.layers.1.mlp.down_proj.weight")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert served.fingerprint != model.fingerprint


def test_edits_are_added_up(base) -> None:
    folder = base()
    model = load(str(folder))
    both = WeightEdit.merge([change(model, {1: 2}), change(model, {1: 3, 2: 1}, seed=1)])
    out, _ = export(both, folder)
    shapes = {name: tuple(part.shape) for name, part in load_file(out / WEIGHTS).items()}
    start = "base_model.model.model.layers"
    assert shapes[f"{start}.1.mlp.down_proj.lora_A.weight"] == (5, 48)
    assert shapes[f"{start}.2.mlp.down_proj.lora_B.weight"] == (32, 1)


def test_a_dense_update_of_low_rank_is_exact(base) -> None:
    folder = base()
    model = load(str(folder))
    edit = change(model, {1: 3})
    name, factors = next(iter(edit.updates.items()))
    dense = WeightEdit({name: factors.dense()}, edit.card)
    out, written = export(dense, folder, max_rank=3)
    assert written.errors.overall == 0
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 3


def test_a_rank_that_is_too_high_is_refused_or_cut_and_said(base) -> None:
    folder = base()
    model = load(str(folder))
    edit = change(model, {1: None, 2: 2})
    with pytest.raises(EditError, match=r"has rank 32; expected at most 4.*--truncate"):
        export(edit, folder, max_rank=4)
    assert not folder.with_name("adapter").exists()
    _, written = export(edit, folder, max_rank=4, truncate=True)
    name, kept = next(iter(edit.updates.items()))
    values = torch.linalg.svdvals(kept.double())
    lost = float(values[4:].norm() / values.norm())
    assert written.errors.of_each[name] == pytest.approx(lost)
    assert list(written.errors.of_each.values())[1] == 0
    assert written.drift.largest_logit_change > 1e-3


def test_what_an_adapter_cannot_change_is_refused(base) -> None:
    folder = base("gpt2")
    model = load(str(folder))
    name = "transformer.h.1.mlp.c_proj.bias"
    edit = WeightEdit({name: torch.ones(32)}, change(model, {1: 1}).card)
    with pytest.raises(EditError, match=r"it changes matrices alone, got an update of .*bias"):
        export(edit, folder)
    with pytest.raises(EditError, match="the edit changes nothing"):
        export(WeightEdit({}, edit.card), folder)
    assert not folder.with_name("adapter").exists()


def test_an_adapter_for_another_base_is_refused(base) -> None:
    folder = base()
    out, _ = export(change(load(str(folder)), {1: 2}), folder)
    other = base(seed=1, name="other")
    with pytest.raises(ModelError, match="is for another base, got a base with fingerprint"):
        load(f"{other}+{out}")
    gpt2 = base("gpt2", name="gpt2")
    save_file(load_file(out / WEIGHTS), out / WEIGHTS)  # as others write it, with no fingerprint
    with pytest.raises(ModelError, match=r"peft cannot put the adapter .* on this base"):
        load(f"{gpt2}+{out}")
    with pytest.raises(ModelError, match="no adapter after '\\+', got 'nowhere'"):
        load(f"{folder}+nowhere")
    (out / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="does not say what the adapter's base is"):
        load(str(out))


def test_what_peft_reads_otherwise_is_not_kept(base, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that changes a bit."""
    from editbench.edits import adapter_export

    folder = base()
    edit = change(load(str(folder)), {1: 2})

    def spoil(tensors: dict[str, torch.Tensor], path: Path, **options: object) -> None:
        name = next(iter(tensors))
        save_file({**tensors, name: tensors[name] * 1.01}, path, **options)

    monkeypatch.setattr(adapter_export, "save_file", spoil)
    with pytest.raises(EditError, match=r"is changed by other numbers\. Nothing was kept"):
        export(edit, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["base"]


def test_a_full_disk_leaves_nothing(base) -> None:
    folder = base()
    edit = change(load(str(folder)), {1: 16})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(EditError, match=r"cannot write the folder.* has space left"):
            export(edit, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in folder.parent.iterdir()] == ["base"]


def test_without_the_package_the_extra_is_named(base, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = base()
    edit = change(load(str(folder)), {1: 2})
    monkeypatch.setattr("transformers.utils.import_utils.is_peft_available", lambda: False)
    with pytest.raises(ModelError, match=r"pip install 'editbench\[adapter\]'"):
        export(edit, folder)


def test_half_precision_bases_are_served_by_the_update_that_was_computed(base) -> None:
    """An adapter lies beside the weights: nothing of it is rounded away."""
    folder = base()
    hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    model = load(str(folder), "bfloat16")
    out, written = export(change(model, {1: 2}), folder)
    assert (
        load_file(out / WEIGHTS)[
            "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
        ].dtype
        == torch.float32
    )
    assert written.drift.divergence < 1e-3
