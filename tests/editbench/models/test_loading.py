import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers as hf
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from editbench.errors import ConfigError, ModelError, PluginError
from editbench.models.builtin_specs import BUILTIN_SPECS
from editbench.models.editable import EditableModel
from editbench.models.loading import load_model, load_outline
from editbench.models.spec import ModelSpec

SPECS = {spec.name: spec for spec in BUILTIN_SPECS}
Save = Callable[..., Path]


def load(path: Path | str, **options: object) -> EditableModel:
    return load_model(str(path), specs=SPECS, **{"device": "cpu", **options})


class TestFolder:
    def test_loads_the_same_model(self, model_folder: Save, make_network, families) -> None:
        folder = model_folder()
        model = load(folder)
        assert model.name == str(folder)
        assert model.spec is None
        expected = dict(make_network(families["gpt2"][0]).named_parameters())
        for name, parameter in model.model.named_parameters():
            assert torch.equal(parameter, expected[name])

    def test_dtype(self, model_folder: Save) -> None:
        folder = model_folder()
        assert load(folder, dtype="bfloat16").model.dtype == torch.bfloat16
        assert load(folder, dtype="auto").model.dtype == torch.float32

    def test_device_map(self, model_folder: Save) -> None:
        folder = model_folder()
        spread = load(folder, device=None, device_map="auto")
        assert spread.fingerprint == load(folder).fingerprint
        assert load(folder, device=None, device_map={"": "cpu"}).device == torch.device("cpu")

    def test_default_device_is_the_gpu_if_there_is_one(self, model_folder: Save) -> None:
        expected = "cuda" if torch.cuda.is_available() else "cpu"
        assert load(model_folder(), device=None).device.type == expected

    def test_home_is_expanded(self, model_folder: Save, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(model_folder("mine").parent))
        assert load("~/mine").architecture.n_layers == 4

    def test_sharded_weights(self, model_folder: Save, make_network, families) -> None:
        folder = model_folder(without=["model.safetensors"])
        make_network(families["gpt2"][0]).save_pretrained(folder, max_shard_size="40KB")
        shards = sorted(folder.glob("model-*.safetensors"))
        assert len(shards) > 1
        assert load(folder).architecture.n_layers == 4
        shards[0].unlink()
        with pytest.raises(ModelError, match=rf"'{shards[0]}' is missing"):
            load(folder)
        (folder / "model.safetensors.index.json").write_text("[]")
        with pytest.raises(ModelError, match=r"index.json' is damaged"):
            load(folder)

    def test_pickled_weights_only_if_allowed(self, model_folder: Save) -> None:
        folder = model_folder()
        fingerprint = load(folder).fingerprint
        weights = hf.AutoModelForCausalLM.from_pretrained(folder).state_dict()
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
        with pytest.raises(ModelError, match=r"holds only pickled weights.* --allow-pickle"):
            load(folder)
        assert load(folder, allow_pickle=True).fingerprint == fingerprint

    def test_safetensors_win_over_pickles(self, model_folder: Save) -> None:
        folder = model_folder()
        (folder / "pytorch_model.bin").write_bytes(b"no pickle at all")
        assert load(folder, allow_pickle=True).architecture.n_layers == 4


class TestDamagedFolder:
    """Each is one line that says what is wrong with which file."""

    def check(self, folder: Path, match: str, **options: object) -> None:
        with pytest.raises(ModelError, match=match) as caught:
            load(folder, **options)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)

    def test_missing(self, tmp_path: Path) -> None:
        self.check(tmp_path / "nothing", "no such folder")
        with pytest.raises(ModelError, match=r"no such folder.* Short names: gpt-j-6b"):
            load("./nothing")

    def test_a_file(self, model_folder: Save) -> None:
        self.check(model_folder() / "config.json", "this is a file, and no GGUF file")

    def test_empty(self, tmp_path: Path) -> None:
        self.check(tmp_path, "no config.json .* an empty folder")

    def test_no_configuration(self, model_folder: Save) -> None:
        self.check(model_folder(without=["config.json"]), "no config.json in .*model.safetensors")

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            ('{"model_type": ', "config.json' cannot be read, got Expecting value"),
            ("[1]", "must hold a JSON object, got list"),
            ("{}", r"has no field 'model_type', got \[\]"),
            ('{"model_type": "gpt9"}', "does not know its kind, got model_type 'gpt9'"),
            ('{"model_type": "gpt2", "n_layer": "many"}', "the configuration cannot be used"),
            ('{"model_type": "t5"}', "its kind cannot be edited, got model_type 't5'"),
            ('{"model_type": "vit"}', "its kind cannot be edited, got model_type 'vit'"),
            (
                '{"model_type": "x", "auto_map": {"AutoConfig": "c.C"}}',
                "needs code from its own repository.* --trust-remote-code",
            ),
        ],
    )
    def test_configuration(self, model_folder: Save, content: str, match: str) -> None:
        folder = model_folder()
        (folder / "config.json").write_text(content)
        self.check(folder, match)

    def test_configuration_that_is_no_text(self, model_folder: Save) -> None:
        folder = model_folder()
        (folder / "config.json").write_bytes(b"\xff\xfe\x00")
        self.check(folder, "cannot be read")

    def test_own_code_runs_where_it_is_trusted(
        self, model_folder: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        modules = tmp_path / "modules"
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
        monkeypatch.setattr(sys, "path", list(sys.path))
        folder = model_folder(
            model_type="ours",
            auto_map={"AutoConfig": "ours.Config", "AutoModelForCausalLM": "ours.Model"},
        )
        (folder / "ours.py").write_text(
            "import transformers\n"
            "class Config(transformers.GPT2Config):\n    model_type = 'ours'\n"
            "class Model(transformers.GPT2LMHeadModel):\n    config_class = Config\n"
        )
        self.check(folder, "needs code from its own repository")
        assert type(load(folder, trust_remote_code=True).model).__name__ == "Model"

    def test_no_weights(self, model_folder: Save) -> None:
        folder = model_folder(without=["model.safetensors"])
        self.check(folder, "no weights in .*; expected model.safetensors")

    @pytest.mark.parametrize("size", [0, 5, 1000, 60_000])
    def test_truncated_weights(self, model_folder: Save, size: int) -> None:
        folder = model_folder()
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:size])
        self.check(folder, "model.safetensors' is truncated or damaged")

    def test_weights_of_another_shape(self, model_folder: Save) -> None:
        self.check(
            model_folder(n_inner=77),
            r"12 weight.* first 'transformer.h.0.mlp.c_fc.bias', got \[128\]; expected \[77\]",
        )

    def test_weights_that_are_not_there(self, model_folder: Save) -> None:
        self.check(
            model_folder(n_layer=5),
            "12 weight.* missing from the checkpoint, first 'transformer.h.4.attn.c_attn.bias'",
        )

    def test_encoder(self, model_folder: Save) -> None:
        folder = model_folder()
        config = hf.BertConfig(
            vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=48,
        )  # fmt: skip
        hf.BertLMHeadModel(config).save_pretrained(folder)
        self.check(folder, "not causal")

    def test_no_tokenizer(self, model_folder: Save) -> None:
        folder = model_folder(without=["tokenizer.json", "tokenizer_config.json"])
        self.check(folder, "no tokenizer in .*; expected one of tokenizer.json")

    def test_damaged_tokenizer(self, model_folder: Save) -> None:
        folder = model_folder()
        (folder / "tokenizer.json").write_text('{"version": ')
        self.check(folder, "the tokenizer cannot be loaded, got JSONDecodeError")

    def test_tokenizer_of_another_model(self, model_folder: Save) -> None:
        folder = model_folder()
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"]["far away"] = 320
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        self.check(folder, "up to 320; expected ids from 0 to 319")


class TestWhatCannotBeEdited:
    """Found before any weights are loaded, also where they are only planned with."""

    def check(self, folder: Path, match: str) -> None:
        # What is no weights at all would be another error, were it read.
        (folder / "model.safetensors").write_bytes(b"")
        for find in (load, partial(load_outline, specs=SPECS)):
            with pytest.raises(ModelError, match=match) as caught:
                find(str(folder))
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("field", "stated", "said"),
        [
            ("quantization_config", {"quant_method": "fp8"}, "with quant_method 'fp8'"),
            ("quantization_config", {"bits": 4}, r"in config.json\. Give the checkpoint in bfl"),
            ("compression_config", {"quant_method": "compressed-tensors"}, "compressed-tensors"),
            ("quantization", {"group_size": 64, "bits": 4}, "got 'quantization' in config.json"),
            ("text_config", {"quantization_config": {"quant_method": "awq"}}, "'awq'"),
        ],
    )
    def test_quantized(
        self, model_folder: Save, field: str, stated: dict[str, object], said: str
    ) -> None:
        self.check(model_folder(**{field: stated}), rf"its weights are quantized, .*{said}")

    @pytest.mark.parametrize(
        "file", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"]
    )
    def test_quantized_says_a_file_beside(self, model_folder: Save, file: str) -> None:
        folder = model_folder()
        (folder / file).write_text("{}")
        self.check(folder, f"quantized, got {file} beside config.json")

    def test_quantization_that_is_none(self, model_folder: Save) -> None:
        assert load(model_folder(quantization_config=None)).architecture.n_layers == 4

    def test_adapter_beside_its_base(self, model_folder: Save) -> None:
        folder = model_folder()
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        self.check(folder, r"holds an adapter, got adapter_config.json .* BASE\+ADAPTER")

    def test_adapter_that_does_not_say_its_base(self, model_folder: Save) -> None:
        folder = model_folder()
        for path in folder.iterdir():
            path.unlink()
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        self.check(folder, r"does not say what the adapter's base is\. Give both: BASE\+ADAPTER")


class TestTensorsOfNoUse:
    def add(self, folder: Path, extra: dict[str, torch.Tensor]) -> None:
        path = folder / "model.safetensors"
        save_file({**load_file(path), **extra}, path, {"format": "pt"})

    @pytest.mark.parametrize(
        "scale",
        [
            "weight_scale", "weight_scale_inv", "input_scale", "qweight", "qzeros", "scales",
            "g_idx", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4",
            "SCB", "weight_packed", "weight_zero_point",
        ],
    )  # fmt: skip
    def test_scales(self, model_folder: Save, scale: str) -> None:
        folder = model_folder()
        name = f"transformer.h.0.mlp.c_proj.{scale}"
        self.add(folder, {name: torch.ones(4)})
        with pytest.raises(ModelError, match=rf"quantized weights .* got '{re.escape(name)}'"):
            load(folder)

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
    def test_numbers_of_eight_bits(self, model_folder: Save, dtype: torch.dtype) -> None:
        folder = model_folder()
        name = "transformer.h.0.mlp.c_proj.weight"
        weight = load_file(folder / "model.safetensors")[name]
        self.add(folder, {name: weight.to(dtype)})
        with pytest.raises(ModelError, match=rf"quantized, got '{name}' in F8_E"):
            load(folder)

    def test_those_that_follow_from_the_configuration_are_not_spoken_of(
        self, model_folder: Save
    ) -> None:
        folder = model_folder()
        names = ("attn.bias", "attn.masked_bias", "attn.rotary_emb.inv_freq")
        self.add(folder, {f"transformer.h.0.{name}": torch.ones(4) for name in names})
        load(folder)  # a warning would be an error

    def test_others_are_said(self, model_folder: Save) -> None:
        folder = model_folder()
        names = [f"value_head.{i}.logit_scale" for i in range(4)]
        self.add(folder, {name: torch.ones(1) for name in names})
        said = rf"model '{folder}': 4 tensor\(s\) of the checkpoint are not used, '{names[0]}'"
        with pytest.warns(UserWarning, match=said + r".* and 1 more"):
            load(folder)


class TestOptions:
    def test_dtype(self, model_folder: Save) -> None:
        with pytest.raises(ConfigError, match="'dtype': got 'int8'; expected one of float32"):
            load(model_folder(), dtype="int8")

    @pytest.mark.parametrize("device", ["gpu", "cuda:77", "cpu:x"])
    def test_device(self, model_folder: Save, device: str) -> None:
        with pytest.raises(ConfigError, match=f"'device': not usable .* got '{device}'"):
            load(model_folder(), device=device)

    def test_device_and_device_map(self, model_folder: Save) -> None:
        with pytest.raises(ConfigError, match="exclude each other"):
            load(model_folder(), device_map="auto")

    def test_revision_of_a_folder(self, model_folder: Save) -> None:
        with pytest.raises(ConfigError, match="has no revisions, got 'v1'"):
            load(model_folder(), revision="v1")


class TestQuiet:
    def test_loading_shows_nothing_and_restores_every_setting(
        self, model_folder: Save, capfd: pytest.CaptureFixture[str]
    ) -> None:
        folder = model_folder()
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_info()
        filters = list(warnings.filters)
        try:
            capfd.readouterr()
            load(folder)
            assert capfd.readouterr() == ("", "")
            assert transformers_logging.get_verbosity() == logging.INFO
            assert transformers_logging.is_progress_bar_enabled()
            assert warnings.filters == filters
        finally:
            transformers_logging.set_verbosity(verbosity)

    def test_bars_that_were_off_stay_off(self, model_folder: Save) -> None:
        transformers_logging.disable_progress_bar()
        try:
            load(model_folder())
            assert not transformers_logging.is_progress_bar_enabled()
            assert are_progress_bars_disabled()
        finally:
            transformers_logging.enable_progress_bar()


class TestSpecs:
    def test_model_that_is_made_in_memory(self, make_network, families, tokenizers) -> None:
        spec = ModelSpec(
            "made", load=lambda: (make_network(families["llama"][0]), tokenizers["bos"])
        )
        model = load_model("made", specs={"made": spec}, dtype="bfloat16", device="cpu")
        assert (model.name, model.spec) == ("made", spec)
        assert model.model.dtype == torch.bfloat16
        stored = load_model("made", specs={"made": spec}, dtype="auto", device="cpu")
        assert stored.model.dtype == torch.float32
        with pytest.raises(ConfigError, match="'made' is made in memory and cannot be spread"):
            load_model("made", specs={"made": spec}, device_map="auto")

    def test_a_lack_of_memory_says_what_to_do(self) -> None:
        def load() -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 TiB")

        spec = ModelSpec("large", load=load)
        with pytest.raises(ModelError, match=r"'large': it does not fit .* --dtype bfloat16"):
            load_model("large", specs={"large": spec}, device="cpu")

    def test_spec_names_one_source(self) -> None:
        for source in ({}, {"repository": "a/b", "load": lambda: None}):
            with pytest.raises(PluginError, match="exactly one of 'repository', 'find_file'"):
                ModelSpec("broken", **source)

    def test_builtin_models_have_the_papers_settings(self) -> None:
        paper = ("gpt2-xl", "gpt-j-6b", "gpt-neox-20b")
        memit = {name: SPECS[name].defaults["memit"] for name in paper}
        assert memit["gpt2-xl"]["critical_layers"] == (13, 14, 15, 16, 17)
        assert memit["gpt-j-6b"]["critical_layers"] == (3, 4, 5, 6, 7, 8)
        assert memit["gpt-neox-20b"]["critical_layers"] == (6, 7, 8, 9, 10)
        weights = {name: fields["preservation_weight"] for name, fields in memit.items()}
        assert weights == {"gpt2-xl": 20_000, "gpt-j-6b": 15_000, "gpt-neox-20b": 20_000}
        assert {name: fields["clamp_factor"] for name, fields in memit.items()} == {
            "gpt2-xl": 0.75, "gpt-j-6b": 0.75, "gpt-neox-20b": 0.3,
        }  # fmt: skip
        assert {name: fields["n_steps"] for name, fields in memit.items()} == {
            "gpt2-xl": 20, "gpt-j-6b": 25, "gpt-neox-20b": 20,
        }  # fmt: skip
        assert all(spec.notes for spec in SPECS.values())
        assert all(set(spec.sources) == set(spec.defaults) for spec in SPECS.values())

    def test_reading_specs_needs_no_torch(self) -> None:
        code = (
            "import sys; import editbench.models.builtin_specs; "
            "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
