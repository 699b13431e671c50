"""What editors offer to a search."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editbench.editors.alphaedit import AlphaEdit
from editbench.editors.emmet import Emmet
from editbench.editors.finetune import FineTune
from editbench.editors.memit import Memit
from editbench.editors.mend.editor import Mend
from editbench.editors.rome import Rome
from editbench.editors.search_space import Choices, LayerWindow, restrict_layers
from editbench.editors.unedited import Unedited
from editbench.errors import ConfigError
from editbench.testing import tiny_model

MODEL = tiny_model()
EDITORS = [Memit, AlphaEdit, Emmet, Rome, FineTune]


def parts_of(space):
    """What is drawn, and what of it there is a choice of."""
    parts = {name: part for field in space for name, part in space[field].parts(field).items()}
    return parts, {name for name, part in parts.items() if len(part.values) > 1}


@pytest.mark.parametrize("editor", EDITORS, ids=lambda editor: editor.name)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_whatever_is_drawn_is_a_configuration(editor, data):
    default, _ = editor.default_config(MODEL)
    space = editor.search_space(MODEL, default)
    parts, _ = parts_of(space)
    drawn = {name: data.draw(st.sampled_from(part.values), name) for name, part in parts.items()}
    config = default.updated({field: each.read(field, drawn) for field, each in space.items()}, "x")
    layers = getattr(config, "critical_layers", None) or (config.layer,)
    for layer in layers:
        MODEL.architecture.check_layer(layer)
    assert list(layers) == list(range(layers[0], layers[-1] + 1))


@pytest.mark.parametrize("editor", EDITORS, ids=lambda editor: editor.name)
def test_the_default_can_be_drawn(editor):
    default, _ = editor.default_config(MODEL)
    for field, each in editor.search_space(MODEL, default).items():
        value = getattr(default, field)
        drawn = each.split(field, value)
        parts = each.parts(field)
        assert all(drawn[name] in part.values for name, part in parts.items())
        assert each.read(field, drawn) == value
        assert all(len(set(part.values)) == len(part.values) for part in parts.values())
        assert any(len(part.values) > 1 for part in parts.values())


def test_only_what_z_does_not_depend_on_is_cheap():
    from editbench.editors.targets.settings import TargetSettings

    for editor in EDITORS:
        default, _ = editor.default_config(MODEL)
        parts, chosen = parts_of(editor.search_space(MODEL, default))
        cheap = {name for name in chosen if parts[name].is_cheap}
        assert cheap.isdisjoint({*TargetSettings.model_fields, "layer", "critical_layers.last"})
        assert bool(cheap) == (editor not in (Rome, FineTune))


def test_mend_says_how_it_is_tuned():
    with pytest.raises(ConfigError, match="Train its hypernetwork with 'editbench train mend'"):
        Mend.search_space(MODEL, Mend.config_type())


def test_layers_can_be_restricted():
    space = {"critical_layers": LayerWindow((0, 1, 2, 3), (1, 2)), "slack": Choices((0.1, 1.0))}
    window = restrict_layers(space, (2, 3), "memit")["critical_layers"]
    assert window.parts("layers")["layers.last"].values == (2, 3)
    assert window.read("layers", {"layers.last": 3, "layers.length": 4}) == (2, 3)
    assert restrict_layers({"layer": Choices((1, 2))}, (3,), "rome")["layer"].values == (3,)
    with pytest.raises(ConfigError, match=r"there are no layers to choose .* got \[1\]"):
        restrict_layers({"slack": Choices((0.1, 1.0))}, [1], "other")


def test_an_editor_offers_nothing_unless_it_says_so():
    assert Unedited.search_space(MODEL, Unedited.config_type()) == {}


def test_grids_hold_the_default():
    assert Choices.around(3.0, (0.5, 2)).values == (1.5, 3.0, 6.0)
    assert Choices.of((1, 5), 3).values == (1, 3, 5)
