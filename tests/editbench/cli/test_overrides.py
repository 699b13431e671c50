"""Hyperparameters from --config and --set: a grid, and who wins."""

import pytest

from editbench.cli.overrides import read_config_file, read_overrides
from editbench.editors.memit import Memit
from editbench.editors.unedited import Unedited
from editbench.errors import ConfigError
from editbench.testing import tiny_model

EDITORS = {"unedited": Unedited, "memit": Memit}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "memit.yaml"
    path.write_text("n_steps: 7\nlearning_rate: 1e-1\ncritical_layers: [0, 1]\n")
    return path


def test_without_options_there_is_one_empty_setting():
    settings = read_overrides(EDITORS, [], [])
    assert {name: len(found) for name, found in settings.items()} == {"unedited": 1, "memit": 1}
    config, origin = settings["memit"][0].configure(Memit, tiny_model())
    assert config == Memit.default_config(tiny_model())[0]
    assert origin.startswith("derived")


def test_file_wins_over_defaults_and_set_over_the_file(config_file):
    settings = read_overrides(EDITORS, [str(config_file)], ["memit.n_steps=9"])
    config, _ = settings["memit"][0].configure(Memit, tiny_model())
    default, _ = Memit.default_config(tiny_model())
    assert (config.n_steps, config.learning_rate) == (9, 0.1)
    assert config.critical_layers == (0, 1)
    assert config.preservation_weight == default.preservation_weight


def test_values_and_files_span_a_grid(config_file, tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"n_steps": 3}')
    settings = read_overrides(
        EDITORS,
        [str(config_file), f"memit={other}"],
        ["memit.clamp_factor=0.5", "memit.clamp_factor=0.75", "memit.clamp_factor=0.5"],
    )["memit"]
    configs = [setting.configure(Memit, tiny_model())[0] for setting in settings]
    assert [(config.n_steps, config.clamp_factor) for config in configs] == [
        (7, 0.5),
        (7, 0.75),
        (3, 0.5),
        (3, 0.75),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("critical_layers=[1, 2]", (1, 2)),
        ("loss_layer=null", None),
        ("learning_rate_unit=relative", "relative"),
        ("preservation_weight=1.5e4", 15000.0),
        ("preservation_weight=15e3", 15000.0),
    ],
)
def test_values_are_yaml(text, value):
    (setting,) = read_overrides(EDITORS, [], [f"memit.{text}"])["memit"]
    config, _ = setting.configure(Memit, tiny_model())
    assert getattr(config, text.partition("=")[0]) == value


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("n_steps=3", "expected EDITOR.FIELD=VALUE"),
        ("memit.n_steps", "expected EDITOR.FIELD=VALUE"),
        ("rome.n_steps=3", "editor 'rome' is not part of this command"),
        ("memit.n_step=3", "unknown field 'n_step'. Did you mean 'n_steps'?"),
        ("memit.n_steps=[", "the value is not YAML"),
    ],
)
def test_malformed_set_option(option, expected):
    with pytest.raises(ConfigError, match=r"^--set") as caught:
        read_overrides(EDITORS, [], [option])
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("n_steps=0", "n_steps"), ("n_steps=many", "'many'"), ("critical_layers=[2,1]", "ascend")],
)
def test_invalid_value_names_the_field(value, expected):
    (setting,) = read_overrides(EDITORS, [], [f"memit.{value}"])["memit"]
    with pytest.raises(ConfigError, match=r"^--set: ") as caught:
        setting.configure(Memit, tiny_model())
    assert expected in str(caught.value)


def test_invalid_value_in_a_file_names_the_file(config_file):
    config_file.write_text("n_steps: -1\n")
    (setting,) = read_overrides(EDITORS, [str(config_file)], [])["memit"]
    with pytest.raises(ConfigError) as caught:
        setting.configure(Memit, tiny_model())
    assert str(config_file) in str(caught.value)
    assert "n_steps" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("c.yaml", "- 1\n- 2\n", "expected a flat mapping of fields"),
        ("c.yaml", "", "expected a flat mapping of fields"),
        ("c.yaml", "n_steps: [\n", "neither YAML nor JSON"),
        ("c.json", '{"n_steps": 3', "neither YAML nor JSON"),
        ("c.json", '{"memit": {"n_steps": 3}}', "unknown field 'memit'"),
        ("c.yaml", "n_steps: 3\nn_steps: 4\n", "'n_steps' stands twice"),
        ("c.json", '{"n_steps": 3, "n_steps": 4}', "'n_steps' stands twice"),
    ],
)
def test_malformed_config_file(tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_overrides(EDITORS, [str(path)], [])
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_missing_config_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the file"):
        read_config_file(tmp_path / "missing.yaml")


def test_file_for_one_of_several_editors_must_say_which(config_file):
    class Other(Memit):
        name = "other"

    editors = {"memit": Memit, "other": Other}
    with pytest.raises(ConfigError, match="Write --config EDITOR=FILE"):
        read_overrides(editors, [str(config_file)], [])
    settings = read_overrides(editors, [f"other={config_file}"], [])
    assert settings["other"][0].file_values["n_steps"] == 7
    assert settings["memit"][0].file_values == {}


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("memit.layers", "Here it is called 'critical_layers'."),
        ("memit.v_lr", "Here it is called 'learning_rate'."),
        ("memit.v_num_grad_steps", "Here it is called 'n_steps'."),
        ("memit.v_weight_decay", "Here it is called 'offset_decay'."),
        ("memit.clamp_norm_factor", "Here it is called 'clamp_factor'."),
        ("memit.kl_factor", "Here it is called 'kl_weight'."),
        ("memit.v_loss_layer", "Here it is called 'loss_layer'."),
        ("memit.mom2_update_weight", "Here it is called 'preservation_weight'."),
        ("memit.fact_token", "Not used: the token is always the subject's last one."),
        ("memit.rewrite_module_tmp", "Not used: found from the model."),
        ("memit.mom2_dataset", "Not used: of second moments: --second-moments, --corpus"),
        ("rome.layers", "Here it is called 'critical_layers'."),
        ("rome.layer", "Here it is called 'critical_layers'."),
        ("rome.v_num_grad_steps", "Here it is called 'n_steps'."),
        ("ft-w.num_steps", "Here it is called 'n_epochs'."),
        ("ft-w.lr", "Here it is called 'learning_rate'."),
    ],
)
def test_names_of_other_tools_are_told(refuses, field, says):
    editor = field.partition(".")[0]
    refuses("run", "--editor", editor, "--set", f"{field}=1", says=says)
