"""Editors go on in smaller parts when memory runs out, and compute the same."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from editbench.editors import rome
from editbench.editors.parts.context_prefixes import ContextPrefixes
from editbench.editors.parts.keys.layer_sweep import LayerSweep, read_hidden
from editbench.editors.parts.keys.projection_reading import read_projections
from editbench.editors.parts.second_moments.factors import solve_layer
from editbench.editors.parts.second_moments.obtaining import LayerMoments
from editbench.editors.parts.second_moments.text_keys import read_keys
from editbench.editors.parts.subject_tokens import key_row
from editbench.errors import DeviceMemoryError
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest
from editbench.testing import tiny_model, toy_cases
from memit_core import UpdateFactors, solve_equality_factors

RoomFor = Callable[..., AbstractContextManager[list[int]]]

REQUESTS = [case.request for case in toy_cases(7)]
SENTENCE = "Danielle Darrieux moved to São Paulo in that year"
SUBJECTS = ("Danielle Darrieux", "São Paulo", "that year", "Danielle")
FAMILY_REQUESTS = [
    EditRequest(
        prompt=SENTENCE[: SENTENCE.index(subject) + 24].replace(subject, "{}"),
        subject=subject,
        target="French",
        case_id=str(index),
    )
    for index, subject in enumerate(SUBJECTS)
]
PREFIXES = ContextPrefixes((("",), ("It is known. ", "In that year, the council met. ")))
FIRST, LAST = 1, 3

ran_out = pytest.mark.filterwarnings("ignore:.*memory ran out")


def start_sweep(
    model: EditableModel, requests: Sequence[EditRequest] = REQUESTS, initial: Tensor | None = None
) -> LayerSweep:
    return LayerSweep(model, requests, PREFIXES, "grouped", first=FIRST, last=LAST, initial=initial)


def go_through(model: EditableModel, sweep: LayerSweep) -> list[Tensor]:
    """Keys and hidden states of all layers, whose weights change after they were measured."""
    found: list[Tensor] = []
    weights = []
    for layer in range(FIRST, LAST + 1):
        found += sweep.measure(layer)
        path = model.architecture.mlp_projections[layer]
        weight = model.model.get_parameter(model.architecture.weight_name(path)).data
        weights.append((weight, weight.clone()))
        weight.mul_(1.5)
    for weight, original in weights:
        weight.copy_(original)
    return found


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [0, FIRST, LAST])
@pytest.mark.parametrize("n_rows", [2, 3, 5])
def test_keys_are_the_same_in_smaller_parts(n_rows: int, layer: int, room_for: RoomFor) -> None:
    model = tiny_model()
    expected = go_through(model, start_sweep(model))
    with room_for(model, n_rows, layer) as sizes, pytest.warns(UserWarning, match="memory ran out"):
        found = go_through(model, start_sweep(model))
    assert max(sizes) > n_rows  # it was tried
    assert_same(found, expected)


@pytest.mark.parametrize("layer", [FIRST, 2, LAST])
@pytest.mark.parametrize("is_known", [False, True])
def test_memory_that_runs_out_while_layers_are_measured(
    layer: int, is_known: bool, room_for: RoomFor
) -> None:
    """Only then: the parts of a batch begin where the batch had come to."""
    model = tiny_model()
    expected = go_through(model, start_sweep(model))
    sweep = start_sweep(model, initial=expected[1] if is_known else None)
    with room_for(model, 2, layer) as sizes, pytest.warns(UserWarning, match="keys on 'tiny'"):
        found = go_through(model, sweep)
    assert_same(found, expected)
    tried = [size for size in sizes if size > 2]
    # Rows of the bare prompt and rows behind a context. Later layers are not tried whole again.
    assert len(tried) <= 4


@ran_out
def test_keys_of_every_family_are_the_same_in_smaller_parts(
    family_model: EditableModel, room_for: RoomFor
) -> None:
    expected = go_through(family_model, start_sweep(family_model, FAMILY_REQUESTS))
    sweep = start_sweep(family_model, FAMILY_REQUESTS)
    with room_for(family_model, 2, 2) as sizes:
        found = go_through(family_model, sweep)
    assert max(sizes) > 2
    assert_same(found, expected)


@ran_out
def test_too_little_for_a_single_key_is_one_clear_error(room_for: RoomFor) -> None:
    model = tiny_model()
    with room_for(model, 0), pytest.raises(DeviceMemoryError, match="one row at a time"):
        read_hidden(model, [key_row(model.tokens, each, "") for each in REQUESTS], LAST)
    with room_for(model, 0, FIRST), pytest.raises(DeviceMemoryError, match="one row at a time"):
        next(read_projections(model, REQUESTS, PREFIXES.flat, FIRST))
    bare = ContextPrefixes((("",),))
    with room_for(model, 0, 0), pytest.raises(DeviceMemoryError, match="one row at a time"):
        LayerSweep(model, REQUESTS, bare, "grouped", first=FIRST, last=LAST)
    sweep = LayerSweep(model, REQUESTS, bare, "grouped", first=FIRST, last=LAST)
    with room_for(model, 0, FIRST), pytest.raises(DeviceMemoryError, match="one row at a time"):
        sweep.measure(FIRST)


@pytest.mark.parametrize("n_rows", [1, 3])
def test_hidden_states_are_the_same_in_smaller_parts(n_rows: int, room_for: RoomFor) -> None:
    model = tiny_model()
    rows = [key_row(model.tokens, each, "") for each in REQUESTS]
    expected = read_hidden(model, rows, 2)
    with room_for(model, n_rows, 2), pytest.warns(UserWarning, match="hidden states on 'tiny'"):
        assert_same([read_hidden(model, rows, 2)], [expected])


@pytest.mark.parametrize("n_rows", [1, 4])
def test_keys_of_one_fact_are_the_same_in_smaller_parts(n_rows: int, room_for: RoomFor) -> None:
    model = tiny_model()
    expected = list(read_projections(model, REQUESTS, PREFIXES.flat, FIRST))
    with room_for(model, n_rows, FIRST), pytest.warns(UserWarning, match="keys on 'tiny'"):
        found = list(read_projections(model, REQUESTS, PREFIXES.flat, FIRST))
    for one, other in zip(found, expected, strict=True):
        assert_same([one.keys, one.values], [other.keys, other.values])


@pytest.mark.parametrize("n_rows", [1, 2])
def test_keys_of_text_are_the_same_in_smaller_parts(n_rows: int, room_for: RoomFor) -> None:
    model = tiny_model()
    texts = [model.tokens.encode(request.text * 3) for request in REQUESTS]
    projections = {layer: model.architecture.mlp_projections[layer] for layer in (FIRST, LAST)}

    def read() -> dict[int, list[Tensor]]:
        """By text, its keys in each layer."""
        by_text: dict[int, list[Tensor]] = {}
        for keys, owners in read_keys(model, projections, texts):
            for text in owners.unique().tolist():
                by_text[text] = [keys[layer][owners == text] for layer in projections]
        return by_text

    expected = read()
    with room_for(model, n_rows, FIRST), pytest.warns(UserWarning, match="keys of ordinary text"):
        found = read()
    assert found.keys() == expected.keys() == set(range(len(texts)))
    for text, keys in expected.items():
        assert_same(found[text], keys)


@ran_out
def test_too_little_for_a_single_text_is_one_clear_error(room_for: RoomFor) -> None:
    model = tiny_model()
    texts = [model.tokens.encode(request.text) for request in REQUESTS]
    projections = {FIRST: model.architecture.mlp_projections[FIRST]}
    with room_for(model, 0, FIRST), pytest.raises(DeviceMemoryError, match="ordinary text"):
        list(read_keys(model, projections, texts))


class SmallAccelerator(TorchFunctionMode):
    """Stands for a device that has no room for matrices of more than so many numbers.

    What is put there lies on the CPU, but says that it is on the device.
    """

    device = torch.device("cuda", 0)

    def __init__(self, n_numbers: int) -> None:
        super().__init__()
        self.n_numbers = n_numbers
        self.n_refused = 0
        self.there: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        cpu = torch.device("cpu")
        is_there = any(args[0] is each for each in self.there) if args else False
        if func == torch.Tensor.device.__get__ and is_there:
            return self.device
        if self.device not in (*args, *kwargs.values()):
            moves = func == torch.Tensor.to and is_there and cpu in (*args, *kwargs.values())
            return func(*args, **kwargs).clone() if moves else func(*args, **kwargs)
        args = tuple(cpu if arg == self.device else arg for arg in args)
        made = func(*args, **{k: cpu if v == self.device else v for k, v in kwargs.items()})
        if made.numel() > self.n_numbers:
            self.n_refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.there.append(made.clone())
        return self.there[-1]


def make_moments(d_key: int) -> LayerMoments:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(100, d_key, generator=generator, dtype=torch.float64)
    moment = tokens.T @ tokens / len(tokens)
    origin = {"model_fingerprint": "m", "corpus_fingerprint": "c", "n_tokens": 9}
    return LayerMoments({3: lambda: moment}, origin)


def make_dense(update: UpdateFactors | Tensor) -> Tensor:
    return update.dense() if isinstance(update, UpdateFactors) else update


@pytest.mark.parametrize("n_edits", [2, 9])
@pytest.mark.parametrize("with_cache", [False, True])
def test_solves_go_on_on_the_cpu(n_edits: int, with_cache: bool, tmp_path: Path) -> None:
    moments = make_moments(12)
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(n_edits, 12, generator=generator)
    residuals = torch.randn(n_edits, 5, generator=generator)
    cache = tmp_path if with_cache else None
    expected = make_dense(solve_layer(keys, residuals, moments, 3, 2.0, None))
    with SmallAccelerator(12 * 12) as roomy:
        there = keys.to(roomy.device), residuals.to(roomy.device)
        found = make_dense(solve_layer(*there, moments, 3, 2.0, None))
    assert any(each.numel() == 12 * 12 for each in roomy.there)
    torch.testing.assert_close(found, expected)
    with SmallAccelerator(12 * 12 - 1) as cramped:
        there = keys.to(cramped.device), residuals.to(cramped.device)
        message = "solving for the update of layer 3: memory ran out on cuda:0"
        with pytest.warns(UserWarning, match=message):
            found = make_dense(solve_layer(*there, moments, 3, 2.0, cache))
    assert cramped.n_refused == 1
    torch.testing.assert_close(found, expected)


def test_second_moments_are_factorized_on_the_cpu_instead(tmp_path: Path) -> None:
    moments = make_moments(12)
    expected = rome._factorize(moments, 3, None, torch.device("cpu"))
    with SmallAccelerator(12 * 12 - 1) as cramped:
        with pytest.warns(UserWarning, match="factorizing second moments of layer 3: memory ran"):
            found = rome._factorize(moments, 3, tmp_path, cramped.device)
        keys = torch.ones(1, 12).to(cramped.device)
        update = solve_equality_factors(keys, torch.ones(1, 5), found)
        assert update.right.device == cramped.device
    torch.testing.assert_close(found.factor, expected.factor)
