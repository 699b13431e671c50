"""MEMIT on tiny models: its contract, its defaults, its caches, its layers in between."""

import pytest
import torch
from pydantic import ValidationError

from editbench.editors.base import Resources
from editbench.editors.closed_form.config import derive_closed_form_defaults
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.keys.layer_sweep import LayerSweep
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.target_hidden import STAGE, optimize_target_hidden
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import ConfigError, ModelError
from editbench.models.builtin_specs import BUILTIN_SPECS
from editbench.progress import report_nothing
from editbench.second_moments.obtaining import obtain_second_moments
from editbench.testing import check_editor, tiny_model, toy_cases, toy_corpus
from memit_core import capture, solve_update, spread_residuals

CONFIG = MemitConfig(
    critical_layers=(0, 2),
    preservation_weight=50,
    n_steps=4,
    learning_rate=0.2,
    learning_rate_unit="relative",
    second_moment_tokens=2_000,
)
PREFIXES = ContextPrefixes((("",), ("Ana Lund met Boris Sato. ", "It is known. ")))
REQUESTS = [case.request for case in toy_cases(3)]


def resources(**changes: object) -> Resources:
    return Resources(**{"seed": 0, "corpus": toy_corpus(), "context_prefixes": PREFIXES, **changes})


def test_memit_keeps_the_editor_contract() -> None:
    assert [result for result in check_editor(Memit) if not result.passed] == []


def test_layers_between_critical_ones_are_run_with_the_new_weights() -> None:
    """The whole edit, worked out naively: a full forward of the edited model for every layer."""
    model = tiny_model()
    edit = Memit(CONFIG).edit(model, REQUESTS, resources())
    assert isinstance(edit, WeightEdit)

    naive = tiny_model()
    targets = optimize_target_hidden(
        naive,
        REQUESTS,
        layer=2,
        settings=CONFIG,
        prefixes=PREFIXES.flat,
        cache=TargetCache(None),
        report_progress=report_nothing,
        replay=False,
    ).states
    moments = obtain_second_moments(tiny_model(), (0, 2), 2_000, resources())
    for n_left, layer in ((2, 0), (1, 2)):
        name = f"transformer.h.{layer}.mlp.c_proj"
        keys, hidden = naive_measure(naive, layer, last=2)
        update = solve_update(
            keys,
            spread_residuals(targets, hidden, n_layers_left=n_left),
            moments[layer],
            preservation_weight=50,
        )
        weight = naive.model.get_parameter(f"{name}.weight")
        weight += update.T.to(weight)
    with edit.applied(model):
        for name, parameter in naive.model.named_parameters():
            torch.testing.assert_close(
                model.model.get_parameter(name), parameter, rtol=1e-4, atol=1e-6
            )


def naive_measure(model, layer: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and hidden states one prompt at a time, prefix weights 1/2, 1/4, 1/4."""
    projection, block = f"transformer.h.{layer}.mlp.c_proj", f"transformer.h.{last}"
    keys, hidden = [], []
    for request in REQUESTS:
        key = torch.zeros(96)
        for prefix, weight in zip(PREFIXES.flat, (0.5, 0.25, 0.25), strict=True):
            ids = model.tokens.encode(prefix + request.text)
            start = len(prefix)
            place = model.tokens.locate(prefix + request.text, start, start + len(request.subject))
            with (
                torch.no_grad(),
                capture(model.model, inputs_of=[projection], outputs_of=[block]) as seen,
            ):
                model.model(torch.tensor([ids]))
            key += weight * seen.inputs[projection][0, place]
            if prefix == "":
                hidden.append(seen.outputs[block][0, place])
        keys.append(key)
    return torch.stack(keys), torch.stack(hidden)


def test_bare_prompts_are_measured_when_no_prefix_is_empty() -> None:
    model = tiny_model()
    with_bare = LayerSweep(model, REQUESTS, PREFIXES, "grouped", first=1, last=2)
    without = ContextPrefixes((("Ana Lund met Boris Sato. ", "It is known. "),))
    keys, hidden = LayerSweep(model, REQUESTS, without, "grouped", first=1, last=2).measure(1)
    both_keys, both_hidden = with_bare.measure(1)
    torch.testing.assert_close(hidden, both_hidden)
    bare = LayerSweep(model, REQUESTS, ContextPrefixes((("",),)), "grouped", first=1, last=2)
    torch.testing.assert_close(both_keys, (bare.measure(1)[0] + keys) / 2)


def test_an_interrupted_run_keeps_its_target_states(tmp_path) -> None:
    model = tiny_model()
    settings = {"layer": 2, "settings": CONFIG, "prefixes": PREFIXES.flat, "token_budget": 1}

    def interrupt_at_second(stage: str, done: int, total: int, note: str = "") -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimize_target_hidden(
            model,
            REQUESTS,
            cache=TargetCache(tmp_path),
            report_progress=interrupt_at_second,
            **settings,
        )
    reports: list[tuple[str, int, str]] = []

    def note_reports(stage: str, done: int, total: int, note: str = "") -> None:
        reports.append((stage, done, note))

    resumed = optimize_target_hidden(
        model, REQUESTS, cache=TargetCache(tmp_path), report_progress=note_reports, **settings
    )
    assert reports[0][0] == STAGE
    assert reports[0][1] >= 1
    assert "from the cache" in reports[0][2]
    whole = optimize_target_hidden(
        model, REQUESTS, cache=TargetCache(None), report_progress=report_nothing, **settings
    )
    assert torch.equal(resumed.states, whole.states)
    assert torch.equal(resumed.n_steps, whole.n_steps)


@pytest.mark.parametrize(
    "change",
    [
        {"clamp_factor": 0.5},
        {"learning_rate": 0.3},
        {"learning_rate_unit": "absolute"},
        {"n_steps": 5},
        {"kl_weight": 0.1},
        {"offset_decay": 0.1},
        {"stop_loss": 0.1},
        {"loss_layer": 2},
    ],
)
def test_every_hyperparameter_of_z_is_in_the_cache_key(change: dict[str, object]) -> None:
    model, cache = tiny_model(), TargetCache(None)
    changed = CONFIG.updated(change, "test")
    key = cache.key(model, REQUESTS[0], 2, CONFIG, PREFIXES.flat)
    assert cache.key(model, REQUESTS[0], 2, changed, PREFIXES.flat) != key
    assert cache.key(model, REQUESTS[1], 2, CONFIG, PREFIXES.flat) != key
    assert cache.key(model, REQUESTS[0], 1, CONFIG, PREFIXES.flat) != key
    assert cache.key(model, REQUESTS[0], 2, CONFIG, PREFIXES.flat[:2]) != key
    assert cache.key(tiny_model(seed=1), REQUESTS[0], 2, CONFIG, PREFIXES.flat) != key


def test_published_hyperparameters_are_the_paper_s() -> None:
    published = {spec.name: spec.defaults["memit"] for spec in BUILTIN_SPECS}
    gpt_j = MemitConfig.parse(published["gpt-j-6b"], "test")
    assert gpt_j.critical_layers == (3, 4, 5, 6, 7, 8)
    assert (gpt_j.preservation_weight, gpt_j.n_steps, gpt_j.clamp_factor) == (15_000, 25, 0.75)
    gpt2_xl = MemitConfig.parse(published["gpt2-xl"], "test")
    assert gpt2_xl.critical_layers == (13, 14, 15, 16, 17)
    assert (gpt2_xl.preservation_weight, gpt2_xl.n_steps) == (20_000, 20)
    neox = MemitConfig.parse(published["gpt-neox-20b"], "test")
    assert neox.critical_layers == (6, 7, 8, 9, 10)
    assert (neox.preservation_weight, neox.n_steps, neox.clamp_factor) == (20_000, 20, 0.3)


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4, 5, 6, 12, 24, 28, 32, 44, 48, 80])
def test_derived_layers_exist_and_end_above_a_quarter_of_the_depth(n_layers: int) -> None:
    config = MemitConfig.parse(derive_closed_form_defaults(n_layers, 1_024), "test")
    layers = config.critical_layers
    assert 0 <= layers[0] <= layers[-1] < n_layers
    if n_layers >= 12:
        assert 0.2 * n_layers < layers[-1] < 0.4 * n_layers
        assert 4 <= len(layers) <= 5


def test_a_file_with_a_learning_rate_and_no_unit_means_the_reference_s() -> None:
    derived, _ = Memit.default_config(tiny_model())
    assert derived.learning_rate_unit == "relative"
    from_file = derived.updated_from_file({"learning_rate": 0.5}, "memit.yaml")
    assert from_file.learning_rate_unit == "absolute"
    both = {"learning_rate": 0.5, "learning_rate_unit": "relative"}
    assert derived.updated_from_file(both, "memit.yaml").learning_rate_unit == "relative"
    assert derived.updated({"learning_rate": 0.5}, "--set").learning_rate_unit == "relative"
    assert derived.updated_from_file({"n_steps": 3}, "memit.yaml").learning_rate_unit == "relative"


def test_derived_defaults_say_so() -> None:
    _, note = Memit.default_config(tiny_model())
    assert "derived from 4 layers" in note


def test_layers_beyond_the_model_are_refused() -> None:
    config = CONFIG.updated({"critical_layers": [9]}, "test")
    with pytest.raises(ModelError, match="no such layer: got 9; expected 0 to 3"):
        Memit(config).edit(tiny_model(), REQUESTS, resources())


def test_configuration_errors_name_source_and_field() -> None:
    with pytest.raises(
        ConfigError, match=r"my\.yaml: unknown field .clamp_factr.. Did you mean .clamp_factor"
    ):
        MemitConfig.parse({"clamp_factr": 1}, "my.yaml")
    with pytest.raises(ConfigError, match=r"my\.yaml: field 'preservation_weight'"):
        MemitConfig.parse({"critical_layers": [1], "preservation_weight": -1}, "my.yaml")
    with pytest.raises(ConfigError, match="critical_layers must ascend"):
        MemitConfig.parse({"critical_layers": [3, 1], "preservation_weight": 1}, "my.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        CONFIG.n_steps = 3


def test_no_settings_count_documents_as_tokens() -> None:
    """Second moments of fewer tokens than keys have dimensions are singular."""
    for spec in BUILTIN_SPECS:
        for editor, values in spec.defaults.items():
            n_tokens = values.get("second_moment_tokens", "auto")
            assert n_tokens == "auto" or n_tokens >= 100_000, (spec.name, editor)
