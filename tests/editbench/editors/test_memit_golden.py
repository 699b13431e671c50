"""MEMIT against what the reference implementation produced from the same inputs."""

import json
import random

import torch
from safetensors.torch import load_file

from editbench.datasets.corpus import Corpus
from editbench.editors.keys.layer_sweep import LayerSweep
from editbench.editors.memit import Memit
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.target_hidden import TargetHidden, optimize_target_hidden
from editbench.edits.weight_edit import WeightEdit
from editbench.progress import report_nothing
from editbench.second_moments.collection import collect_second_moments


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def optimize(golden, *, replay: bool, requests=None) -> TargetHidden:
    return optimize_target_hidden(
        golden.model,
        requests or golden.requests,
        layer=golden.config.critical_layers[-1],
        settings=golden.config,
        prefixes=golden.prefixes.flat,
        cache=TargetCache(None),
        report_progress=report_nothing,
        replay=replay,
    )


def test_target_hidden_states_match(golden) -> None:
    found = optimize(golden, replay=True)
    expected = golden.memit["z"]
    assert found.replay_failure is None
    assert relative_error(found.initial, golden.memit["h_init"]) < 1e-5
    assert found.n_steps.tolist() == [one["n_forward"] for one in golden.losses]
    for edit, loss in enumerate(golden.losses):
        assert relative_error(found.states[edit], expected[edit]) < 1e-3
        assert abs(float(found.losses[edit]) - loss["final"]["loss"]) < 1e-3


def test_replay_equals_full_forward(golden) -> None:
    some = golden.requests[:6]
    fast = optimize(golden, replay=True, requests=some)
    plain = optimize(golden, replay=False, requests=some)
    for edit in range(len(some)):
        assert relative_error(fast.states[edit], plain.states[edit]) < 1e-5
    assert fast.n_steps.tolist() == plain.n_steps.tolist()


def test_keys_and_hidden_states_of_the_first_layer_match(golden) -> None:
    first, *_, last = golden.config.critical_layers
    sweep = LayerSweep(
        golden.model, golden.requests, golden.prefixes, "grouped", first=first, last=last
    )
    keys, hidden = sweep.measure(first)
    assert relative_error(keys, golden.memit[f"layer.{first}.keys"]) < 1e-5
    assert relative_error(hidden, golden.memit[f"layer.{first}.cur_h"]) < 1e-5


def test_updates_match_and_the_model_is_untouched(golden) -> None:
    before = golden.model.compute_fingerprint()
    edit = Memit(golden.config).edit(golden.model, golden.requests, golden.resources)
    assert isinstance(edit, WeightEdit)
    assert golden.model.compute_fingerprint() == before
    for layer in golden.config.critical_layers:
        name = golden.model.architecture.weight_name(
            golden.model.architecture.mlp_projections[layer]
        )
        parameter = golden.model.model.get_parameter(name)
        with edit.applied(golden.model):
            edited = parameter.clone()
        expected = golden.memit[f"layer.{layer}.update"]
        assert relative_error(edited - parameter, expected) < 1e-3


def test_collected_moments_match_the_reference(golden) -> None:
    texts = json.loads((golden.folder / "covariance_corpus.json").read_text())
    order = list(range(len(texts)))
    random.Random(1).shuffle(order)
    corpus = Corpus("golden", "golden", lambda: [texts[index]["text"] for index in order[:300]])
    layers = golden.config.critical_layers
    found = collect_second_moments(golden.model, corpus, layers, 10**9, report_nothing)
    stored = load_file(golden.folder / "covariance.safetensors")
    for layer in layers:
        expected = stored[f"layer.{layer}.moment"].double()
        assert found[layer].n_tokens == int(stored[f"layer.{layer}.count"])
        assert (found[layer].moment() - expected).norm() < 1e-5 * expected.norm()
