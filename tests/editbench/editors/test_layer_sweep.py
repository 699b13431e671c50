"""The stored forward that keys come from: what it shows is what the model's own forward shows."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode

from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.keys.layer_sweep import LayerSweep
from editbench.editors.keys.reading import read_hidden
from editbench.editors.subject_tokens import key_row
from editbench.models.editable import EditableModel
from editbench.models.offload import updated_weights
from editbench.testing import tiny_tokenizer, toy_cases

REQUESTS = [case.request for case in toy_cases(5)]
PREFIXES = ContextPrefixes((("",), ("The car went. ", "It is known that ")))
NORM_BEHIND = ("gemma2", "gemma3", "olmo2", "opt_post_norm")
FIRST, LAST = 0, 3


def sweep(
    model: EditableModel, *, opens: bool, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and hidden states of layers 0, 1, 3 while weights change; and those of the end."""
    if not opens:
        monkeypatch.setattr(LayerSweep, "_can_open", lambda self, rows: False)
    states = LayerSweep(model, REQUESTS, PREFIXES, "grouped", first=FIRST, last=LAST)
    assert states._opens == opens
    found = []
    updates: dict[str, torch.Tensor] = {}
    for layer in (0, 1, 3):
        with updated_weights(model.model, updates):
            found.append(states.measure(layer))
        projection = model.architecture.projection(layer, "mlp")
        name = model.architecture.weight_name(projection)
        weight = model.model.get_parameter(name)
        chance = torch.Generator().manual_seed(layer)
        updates[name] = 0.1 * torch.randn(weight.shape, generator=chance)
    bare = [key_row(model.tokens, request, "") for request in REQUESTS]
    del updates[name]  # nothing was measured with it
    with updated_weights(model.model, updates):
        found.append((found[-1][0], read_hidden(model, bare, LAST)))
    return found


def test_a_block_that_is_kept_open_is_as_good_as_one_that_runs_again(
    family_model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family_model.name in NORM_BEHIND:
        sweep(family_model, opens=False, monkeypatch=monkeypatch)
        return
    opened = sweep(family_model, opens=True, monkeypatch=monkeypatch)
    run_again = sweep(family_model, opens=False, monkeypatch=monkeypatch)
    for found, expected in zip(opened, run_again, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(opened[-1][1], opened[-2][1], rtol=1e-4, atol=1e-4)


def test_a_norm_behind_the_projection_is_noticed_in_half_precision(
    family_model: EditableModel,
) -> None:
    half = copy.deepcopy(family_model.model).to(torch.bfloat16)
    model = EditableModel(half, family_model.tokens, name=family_model.name)
    states = LayerSweep(model, REQUESTS, PREFIXES, "grouped", first=FIRST, last=LAST)
    assert states._opens == (model.name not in NORM_BEHIND)


def test_keys_of_many_layers_cost_at_most_one_and_a_half_forwards(
    make_network: Callable[..., hf.PreTrainedModel],
) -> None:
    """GPT-J's critical layers and number of prefixes; one forward up to the last is the measure."""
    config = hf.GPTJConfig(
        n_embd=64, n_layer=12, n_head=4, rotary_dim=8, vocab_size=len(tiny_tokenizer())
    )
    model = EditableModel(make_network(config), tiny_tokenizer(), name="deep")
    # As in CounterFact, most prompts do not begin with their subject, and few begin alike.
    begins = 7 * ("Ana", "Boris", "In town they", "Who", "Carmen")
    requests = [
        replace(case.request, prompt=f"{begin} said that {case.request.prompt}")
        for begin, case in zip(begins, toy_cases(32), strict=False)
    ]
    said = ("The car went. ", "It is known. ", "In that year ", "Ana said so. ", "Because ")
    prefixes = ContextPrefixes((("",), said))
    costs = []
    for layers in (range(3, 9), range(8, 9)):
        initial = torch.zeros(len(requests), 64)
        first, last = layers[0], layers[-1]
        with FlopCounterMode(display=False) as counter:
            states = LayerSweep(
                model, requests, prefixes, "grouped", first=first, last=last, initial=initial
            )
            for layer in layers:
                states.measure(layer)
        costs.append(counter.get_total_flops())
    assert 1 < costs[0] / costs[1] < 1.5


def test_a_model_without_a_cache_runs_whole_rows(
    make_network: Callable[..., hf.PreTrainedModel],
    tokenizers: dict[str, hf.PreTrainedTokenizerFast],
) -> None:
    config = hf.OpenAIGPTConfig(n_embd=32, n_layer=4, n_head=4, n_positions=64, vocab_size=320)
    model = EditableModel(make_network(config), tokenizers["bos"], name="no cache")
    states = LayerSweep(model, REQUESTS, PREFIXES, "grouped", first=1, last=2)
    _, hidden = states.measure(1)
    bare = [key_row(model.tokens, request, "") for request in REQUESTS]
    torch.testing.assert_close(hidden, read_hidden(model, bare, 2))
