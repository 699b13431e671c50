"""Editors go on in smaller parts when memory runs out, and compute the same."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from editbench.costs.stage import ExpectedCache
from editbench.editors.base import Editor, Resources
from editbench.editors.borrowed_weights import borrowed_weights
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.finetune import FineTune, FineTuneConfig
from editbench.editors.keys.layer_sweep import LayerSweep
from editbench.editors.keys.reading import read_hidden, read_projections
from editbench.editors.memit import Memit
from editbench.editors.mend.editor import Mend
from editbench.editors.rome import Rome
from editbench.editors.subject_tokens import key_row
from editbench.editors.training.batches import count_fitting
from editbench.editors.training.minibatch import Minibatch
from editbench.editors.training.target_likelihood import TargetBatch, keep_states
from editbench.editors.training.weight_trainer import WeightTrainer
from editbench.edits.edit import Edit
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import DeviceMemoryError
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import Halving, explaining_out_of_memory
from editbench.requests import EditRequest
from editbench.second_moments.corpus_keys import read_keys
from editbench.testing import config_for_check, tiny_model, toy_cases, toy_corpus
from memit_core import UpdateFactors

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


def make_dense(update: UpdateFactors | Tensor) -> Tensor:
    return update.dense() if isinstance(update, UpdateFactors) else update


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("n_rows", [1, 2])
def test_finetuning_is_the_same_in_smaller_parts(
    n_rows: int, layer: int, room_for: RoomFor
) -> None:
    """Both where states are kept, in front of what is trained, and where gradients are taken."""
    config = FineTuneConfig(layer=1, n_epochs=3, batch_size=5)
    model = tiny_model()
    expected = FineTune(config).edit(model, REQUESTS, Resources(seed=0))
    with room_for(model, n_rows, layer) as sizes, pytest.warns(UserWarning, match="memory ran out"):
        found = FineTune(config).edit(model, REQUESTS, Resources(seed=0))
    # Five facts and two, halved until they fit; in later epochs nothing is tried whole again.
    assert 0 < sum(size > n_rows for size in sizes) <= 4
    assert found.card.extra["losses"] == pytest.approx(expected.card.extra["losses"], abs=1e-4)
    assert_same_updates(found, expected)


@ran_out
@pytest.mark.parametrize("only_projection", [True, False])
@pytest.mark.parametrize("are_kept", [True, False])
# As unlike each other as families are in what their blocks are handed.
@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma2", "falcon"], scope="session")
def test_gradients_of_parts_add_up(
    only_projection: bool, are_kept: bool, family_model: EditableModel, room_for: RoomFor
) -> None:
    model, layer = family_model, 1
    path = model.architecture.mlp_projections[layer]
    path = path if only_projection else model.architecture.block(layer)
    names = [f"{path}.{name}" for name, _ in model.model.get_submodule(path).named_parameters()]

    def measure() -> tuple[float, list[Tensor]]:
        batch = TargetBatch(model, FAMILY_REQUESTS, "teacher-forced")
        minibatch = Minibatch(batch)
        if are_kept:
            request = FAMILY_REQUESTS[0]
            keep_states(model, [minibatch], request, layer, only_projection=only_projection)
        with borrowed_weights(model, names) as parameters:
            trainer = WeightTrainer(
                list(parameters.values()), learning_rate=1, weight_decay=0, norm_constraint=None
            )
            with trainer.gradients_on(), room:
                loss, gradients = minibatch.measure(trainer, Halving("training"), enough=0)
        assert gradients is not None
        return loss, [torch.zeros(()) if each is None else each for each in gradients]

    room: AbstractContextManager[object] = nullcontext()
    loss, gradients = measure()
    room = room_for(model, 1, 3)
    parts_loss, parts_gradients = measure()
    assert parts_loss == pytest.approx(loss, rel=1e-5)
    for name, one, other in zip(names, parts_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)


@ran_out
def test_too_little_for_the_gradient_of_a_single_fact_is_one_clear_error(room_for: RoomFor) -> None:
    config = FineTuneConfig(layer=1, scoring="last-position")
    model = tiny_model()
    refused = pytest.raises(DeviceMemoryError, match="Load the model with --dtype bfloat16")
    with room_for(model, 0), refused, explaining_out_of_memory("trial"):
        FineTune(config).edit(model, REQUESTS, Resources(seed=0))


@pytest.mark.parametrize("editor", [FineTune, Mend], ids=lambda editor: editor.name)
def test_parts_are_small_from_the_start_where_memory_is_little(
    editor: type[Editor], tmp_path: Path, room_for: RoomFor
) -> None:
    model = tiny_model()
    chosen = editor(config_for_check(editor, model, toy_cases(12), tmp_path))
    resources = Resources(seed=0)
    expected = chosen.edit(model, REQUESTS, resources)
    n_trained = 96 * 24 + 24 if editor is FineTune else 0
    first = 3 if editor is FineTune else 0
    with room_for(model, 2) as sizes:  # no warning: nothing is tried that does not fit
        fitting, room = [], 2.0**10
        while not fitting or fitting[-1] < 2:
            room *= 1.1
            model.memory.limit = int(model.memory.weight_bytes[model.device] + room)
            fitting.append(count_fitting(model, REQUESTS, first=first, n_trained=n_trained))
        (stage,) = chosen.estimate(model, REQUESTS, resources, ExpectedCache())
        found = chosen.edit(model, REQUESTS, resources)
    assert fitting == [*[1] * (len(fitting) - 1), 2]
    assert max(sizes) == 2
    assert stage.n_peak_bytes <= room
    assert_same_updates(found, expected)


def test_mend_is_the_same_in_smaller_parts(tmp_path: Path, room_for: RoomFor) -> None:
    model = tiny_model()
    config = config_for_check(Mend, model, toy_cases(12), tmp_path)
    expected = Mend(config).edit(model, REQUESTS, Resources(seed=0))
    with room_for(model, 2) as sizes, pytest.warns(UserWarning, match="gradients of edits"):
        found = Mend(config).edit(model, REQUESTS, Resources(seed=0))
    assert sizes == [7, 4, 2, 2, 2, 1]
    assert found.card.extra["loss"] == pytest.approx(expected.card.extra["loss"], abs=1e-4)
    assert_same_updates(found, expected)


def test_memit_is_the_same_in_smaller_parts(tmp_path: Path, room_for: RoomFor) -> None:
    """From second moments to the last solve."""
    model = tiny_model()
    config = config_for_check(Memit, model, [], tmp_path)
    resources = Resources(seed=0, corpus=toy_corpus())
    expected = Memit(config).edit(model, REQUESTS, resources)
    with room_for(model, 8, 0), pytest.warns(UserWarning, match="memory ran out") as caught:
        found = Memit(config).edit(model, REQUESTS, resources)
    kinds = {str(warning.message).partition(" on ")[0] for warning in caught}
    assert kinds == {"keys of ordinary text", "target hidden states", "keys"}
    assert_same_updates(found, expected)


@ran_out
@pytest.mark.parametrize("editor", [Memit, Rome, Mend], ids=lambda editor: editor.name)
def test_too_little_for_a_single_fact_is_one_clear_error(
    editor: type[Editor], tmp_path: Path, room_for: RoomFor
) -> None:
    model = tiny_model()
    config = config_for_check(editor, model, toy_cases(12), tmp_path)
    before = model.compute_fingerprint()
    with room_for(model, 0, 0), pytest.raises(DeviceMemoryError, match="even for one row"):
        editor(config).edit(model, REQUESTS, Resources(seed=0, corpus=toy_corpus()))
    assert model.compute_fingerprint() == before


def assert_same_updates(found: Edit, expected: Edit) -> None:
    assert isinstance(found, WeightEdit)
    assert isinstance(expected, WeightEdit)
    assert found.updates.keys() == expected.updates.keys() != set()
    for name, update in expected.updates.items():
        one, other = make_dense(found.updates[name]), make_dense(update)
        assert (one - other).norm() <= 1e-3 * other.norm()
