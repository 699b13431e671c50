"""Editing a model that another edit is on: caches give what there is without them, to the bit."""

from pathlib import Path

import pytest
import torch

from editbench.datasets.corpus import Corpus
from editbench.editors.base import Editor, Resources
from editbench.editors.context_prefixes import ContextPrefixes, sample_context_prefixes
from editbench.editors.finetune import FineTune, FineTuneConfig
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.rome import Rome, RomeConfig
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import ModelError
from editbench.models.editable import EditableModel
from editbench.progress import report_nothing
from editbench.second_moments.collection import collect_second_moments
from editbench.second_moments.collection_files import collect_to_file
from editbench.second_moments.obtaining import obtain_second_moments
from editbench.testing import tiny_model, toy_cases, toy_corpus
from memit_core import UpdateFactors

PREFIXES = ContextPrefixes((("",), ("Ana Lund met Boris Sato. ", "It is known. ")))
REQUESTS = [case.request for case in toy_cases(6)]
BEFORE, THEN = REQUESTS[:3], REQUESTS[3:]
_TARGETS = {"n_steps": 3, "learning_rate": 0.2, "learning_rate_unit": "relative"}
EDITORS: dict[str, Editor] = {
    "memit": Memit(
        MemitConfig(
            critical_layers=(0, 2),
            preservation_weight=50,
            second_moment_tokens=600,
            n_context_prefixes=2,
            context_prefix_length=4,
            **_TARGETS,
        )
    ),
    "rome": Rome(
        RomeConfig(
            critical_layers=(1,),
            second_moment_tokens=600,
            n_context_prefixes=1,
            context_prefix_lengths=(4,),
            **_TARGETS,
        )
    ),
}


def resources(**changes: object) -> Resources:
    return Resources(**{"seed": 0, "corpus": toy_corpus(), "context_prefixes": PREFIXES, **changes})


def no_corpus() -> Corpus:
    def read() -> list[str]:
        pytest.fail("there is nothing to collect")

    return Corpus("toy", toy_corpus().fingerprint, read)


@pytest.fixture
def model() -> EditableModel:
    return tiny_model()


@pytest.fixture
def first(model: EditableModel) -> WeightEdit:
    """An edit that moves keys, states and samples of all layers by much."""
    generator = torch.Generator().manual_seed(5)
    left, right = (torch.randn(size, 4, generator=generator) for size in (24, 96))
    name = model.architecture.weight_name(model.architecture.mlp_projections[0])
    updates = {name: UpdateFactors(left, right)}
    return WeightEdit.build(model, editor="x", config={}, requests=BEFORE, updates=updates)


def assert_same(one: object, other: object) -> None:
    assert isinstance(one, WeightEdit)
    assert isinstance(other, WeightEdit)
    assert one.identity == other.identity
    assert one.card == other.card


@pytest.mark.parametrize("name", EDITORS)
def test_each_cache_gives_what_there_is_without_it(
    model: EditableModel, first: WeightEdit, name: str, tmp_path: Path
) -> None:
    editor = EDITORS[name]
    with first.applied(model):
        plain = editor.edit(model, THEN, resources())
    unedited = editor.edit(model, THEN, resources(cache=tmp_path))
    with first.applied(model):
        for _ in range(2):
            assert_same(editor.edit(model, THEN, resources(cache=tmp_path)), plain)
    assert_same(editor.edit(model, THEN, resources(cache=tmp_path)), unedited)
    assert isinstance(unedited, WeightEdit)
    assert isinstance(plain, WeightEdit)
    assert unedited.identity != plain.identity
    assert unedited.card.edits_on == ()
    assert plain.card.edits_on == (first.identity,)


@pytest.mark.parametrize("name", EDITORS)
def test_a_cache_that_was_filled_under_an_edit_is_right_without_it(
    model: EditableModel, first: WeightEdit, name: str, tmp_path: Path
) -> None:
    editor = EDITORS[name]
    plain = editor.edit(model, THEN, resources())
    with first.applied(model):
        editor.edit(model, THEN, resources(cache=tmp_path))
    assert_same(editor.edit(model, THEN, resources(cache=tmp_path)), plain)


@pytest.mark.parametrize("name", EDITORS)
def test_prefixes_are_sampled_from_the_unedited_model(
    model: EditableModel, first: WeightEdit, name: str
) -> None:
    sampled = EDITORS[name].edit(model, THEN, resources(context_prefixes=None))
    given = ContextPrefixes.of(sampled.card.extra["context_prefixes"], "card")
    with first.applied(model):
        other = EDITORS[name].edit(model, THEN, resources(context_prefixes=None))
        assert_same(other, EDITORS[name].edit(model, THEN, resources(context_prefixes=given)))
        assert sample_context_prefixes(model, n_prefixes=3, lengths=(8,), seed=1) == (
            sample_context_prefixes(tiny_model(), n_prefixes=3, lengths=(8,), seed=1)
        )


def test_second_moments_are_those_of_the_unedited_model(
    model: EditableModel, first: WeightEdit, tmp_path: Path
) -> None:
    expected = collect_second_moments(model, toy_corpus(), [1, 2], 500, report_nothing)
    collect_to_file(model, toy_corpus(), [1, 2], 500, tmp_path / "given", report_nothing)
    with first.applied(model):
        state = model.state
        found = [
            obtain_second_moments(model, [1, 2], 500, some)
            for some in (
                resources(),
                resources(cache=tmp_path / "cache"),
                resources(cache=tmp_path / "cache", corpus=no_corpus()),
                resources(second_moments=tmp_path / "given"),
            )
        ]
        assert model.state == state
    for moments in found:
        for layer in (1, 2):
            assert torch.equal(moments[layer], expected[layer].moment())


def test_factors_under_an_edit_are_those_of_the_unedited_model(
    model: EditableModel, first: WeightEdit, tmp_path: Path
) -> None:
    memit = EDITORS["memit"]
    memit.edit(model, THEN, resources(cache=tmp_path))
    factors = {path: path.read_bytes() for path in tmp_path.glob("factors/*.safetensors")}
    assert len(factors) == 2
    with first.applied(model):
        edit = memit.edit(model, THEN, resources(cache=tmp_path, corpus=no_corpus()))
        assert_same(edit, memit.edit(model, THEN, resources()))
    assert {path: path.read_bytes() for path in tmp_path.glob("factors/*.safetensors")} == factors


def test_weights_that_something_else_has_changed_are_refused(
    model: EditableModel, tmp_path: Path
) -> None:
    """Neither second moments nor z of the model as it was are taken for those of what it is."""
    for name, editor in EDITORS.items():
        editor.edit(model, THEN, resources(cache=tmp_path / name))
    model.model.get_parameter("transformer.h.0.mlp.c_fc.bias").data += 0.1
    tuning = FineTune(FineTuneConfig(layer=1))
    for editor in (*EDITORS.values(), tuning):
        with pytest.raises(ModelError, match=r"not what they were at first, got .*; expected .*\."):
            editor.edit(model, THEN, resources(cache=tmp_path / editor.name))
    again = EditableModel(model.model, model.tokens, name="again")
    for name, editor in EDITORS.items():
        assert_same(
            editor.edit(again, THEN, resources(cache=tmp_path / name)),
            editor.edit(again, THEN, resources()),
        )


def test_edits_that_follow_each_other_are_one_edit_of_the_unedited_model(
    model: EditableModel, tmp_path: Path
) -> None:
    memit, rome = EDITORS["memit"], EDITORS["rome"]
    one = memit.edit(model, BEFORE, resources(cache=tmp_path))
    with one.applied(model):
        two = rome.edit(model, THEN, resources(cache=tmp_path))
        with two.applied(model):
            three = memit.edit(model, BEFORE, resources(cache=tmp_path))
            with three.applied(model):
                stacked = {name: each.clone() for name, each in model.model.named_parameters()}
    assert isinstance(one, WeightEdit)
    assert isinstance(two, WeightEdit)
    assert isinstance(three, WeightEdit)
    assert three.card.edits_on == (one.identity, two.identity)
    total = WeightEdit.merge([one, two, three])
    assert total.card.edits_on == ()
    with total.applied(model):
        for name, each in model.model.named_parameters():
            torch.testing.assert_close(each, stacked[name], rtol=0, atol=1e-5)
