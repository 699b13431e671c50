"""Streams hand out what they carry, and go on from it with the same bits."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tests.editbench.editors.test_streams import (
    _LAYERS,
    BATCHES,
    CLOSED_FORM,
    FINE_TUNE,
    REQUESTS,
    resources,
    weights_with,
)

from editbench.editors.alphaedit import EvoEdit, EvoEditConfig, Nas, NasConfig
from editbench.editors.base import Editor, EditorConfig, Resources
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.stream import Carried, DrivenStream
from editbench.editors.ultraedit import UltraEdit, UltraEditConfig
from editbench.editors.unedited import Unedited
from editbench.edits.edit import Edit
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import EditError
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest
from editbench.testing import tiny_model, toy_cases

EDITORS: dict[str, Editor] = {
    **CLOSED_FORM,
    "ft-w": FINE_TUNE,
    "ultraedit": UltraEdit(UltraEditConfig(critical_layers=(1, 2))),
    "ote-rect": Memit(
        MemitConfig.parse({**_LAYERS, "finish": "rect", "error_feedback": True}, "test")
    ),
    "revive": Memit(MemitConfig.parse({**_LAYERS, "history": True, "finish": "revive"}, "test")),
    "evoedit": EvoEdit(EvoEditConfig.parse(_LAYERS, "test")),
    "nas": Nas(NasConfig.parse(_LAYERS, "test")),
}


def through_a_file(carried: Carried, path: Path) -> Carried:
    """What comes back from disk."""
    carried.save(path, {"from": "here"})
    found, provenance = Carried.load(path)
    assert provenance == {"from": "here"}
    return found


@pytest.mark.parametrize("name", EDITORS)
@pytest.mark.parametrize("with_cache", [False, True])
def test_a_stream_that_goes_on_has_the_same_bits(
    name: str, with_cache: bool, tmp_path: Path
) -> None:
    editor, model = EDITORS[name], tiny_model()
    given = resources(cache=tmp_path / "cache" if with_cache else None)
    whole = editor.open_stream(model, given)
    expected = [whole.write(batch) for batch in BATCHES]
    for n_before in (1, 2):
        stream = editor.open_stream(model, given)
        for batch in BATCHES[:n_before]:
            stream.write(batch)
        assert stream.carried is not None
        carried = through_a_file(stream.carried, tmp_path / "carried.safetensors")
        later = editor.open_stream(model, given, carried)
        for batch, wanted in zip(BATCHES[n_before:], expected[n_before:], strict=True):
            found = later.write(batch)
            assert isinstance(found, WeightEdit)
            assert found.identity == wanted.identity
            assert found.card == wanted.card


def test_history_that_has_become_a_part_of_the_factors_comes_back(tmp_path: Path) -> None:
    """d_key is 96: after 48 rows they are absorbed."""
    editor, model = CLOSED_FORM["history"], tiny_model()
    requests = [case.request for case in toy_cases(32)]
    more = [EditRequest(f"{r.case_id}b", f"{r.subject} II", r.prompt, r.target) for r in requests]
    batches = [requests[:20], requests[20:], more[:20], more[20:]]
    stream = editor.open_stream(model, resources())
    expected = [stream.write(batch) for batch in batches][-1]
    stream = editor.open_stream(model, resources())
    for batch in batches[:3]:
        stream.write(batch)
    assert stream.carried is not None
    found = editor.open_stream(model, resources(), stream.carried).write(batches[3])
    assert isinstance(found, WeightEdit)
    assert found.identity == expected.identity


def test_what_changes_nothing_is_carried_too() -> None:
    editor, model = Unedited(EditorConfig()), tiny_model()
    stream = editor.open_stream(model, resources())
    stream.write(BATCHES[0])
    assert stream.carried is not None
    edit = editor.open_stream(model, resources(), stream.carried).write(BATCHES[1])
    assert not edit.changes_something
    assert edit.card.n_edits == 3


class Driven(Editor):
    """Brings a stream of its own."""

    name: ClassVar[str] = "driven"
    is_greedy = False

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        return FINE_TUNE.edit(model, requests, resources)

    def edit_stream(
        self, model: EditableModel, batches: Iterator[Sequence[EditRequest]], resources: Resources
    ) -> Iterator[Edit]:
        for batch in list(batches) if self.is_greedy else batches:
            yield self.edit(model, batch, resources)


def test_an_editor_s_own_stream_is_handed_one_batch_after_another() -> None:
    model = tiny_model()
    stream = Driven(EditorConfig()).open_stream(model, resources())
    assert isinstance(stream, DrivenStream)
    edits = [stream.write(batch) for batch in BATCHES]
    assert [edit.card.n_edits for edit in edits] == [2, 1, 2]
    assert stream.carried is None


def test_a_stream_that_takes_more_than_it_is_given_is_refused() -> None:
    editor = Driven(EditorConfig())
    editor.is_greedy = True
    stream = editor.open_stream(tiny_model(), resources())
    stream.write(BATCHES[0])
    with pytest.raises(EditError, match="one batch at a time"):
        stream.write(BATCHES[1])


@pytest.mark.parametrize("name", ["memit", "rome"])
def test_drift_is_what_later_batches_do_to_keys(name: str) -> None:
    editor, model = CLOSED_FORM[name], tiny_model()
    stream = editor.open_stream(model, resources())
    stream.write(BATCHES[0])
    edit = stream.write(BATCHES[1])
    before = model.compute_fingerprint()
    drift = stream.measure_drift(edit)
    assert model.compute_fingerprint() == before
    lowest, *higher = drift.values()
    assert len(lowest) == 3
    assert max(lowest) < 1e-5  # nothing below it has changed
    for layer in higher:
        assert min(layer[:2]) > 1e-4  # written first, and moved since
        assert layer[2] < 1e-5  # just written
    assert bool(higher) == (name == "memit")


def test_drift_is_of_the_keys_that_a_model_really_has(tmp_path: Path) -> None:
    """Worked out from outside: bare prompts alone, keys read by hooks."""
    from editbench.editors.context_prefixes import ContextPrefixes
    from editbench.editors.keys.reading import read_projection

    editor, model = CLOSED_FORM["memit"], tiny_model()
    given = resources(context_prefixes=ContextPrefixes((("",),)))
    stream = editor.open_stream(model, given)
    first = stream.write(BATCHES[0])
    second = stream.write(BATCHES[1])
    keys = []
    for edit in (first, second):
        with edit.applied(model):
            keys.append(read_projection(model, REQUESTS[0], ("",), 2).keys[0])
    expected = (keys[1] - keys[0]).norm() / keys[0].norm()
    found = stream.measure_drift(second)[2][0]
    torch.testing.assert_close(torch.tensor(found), expected.float().cpu(), rtol=1e-3, atol=1e-6)


def test_a_fact_in_the_place_of_another_supersedes_it() -> None:
    first, second = REQUESTS[0], REQUESTS[1]
    later = EditRequest("later", first.subject, first.prompt, "juggler", first.relation)
    for name in ("memit", "ultraedit"):
        stream = EDITORS[name].open_stream(tiny_model(), resources())
        stream.write([first, second])
        facts = stream.write([later]).card.extra["facts"]
        assert [fact["case_id"] for fact in facts] == [first.case_id, second.case_id, "later"]
        assert facts[0]["status"] == "superseded"
        assert "superseded" not in {fact["status"] for fact in facts[1:]}


def test_the_total_of_single_edits_says_how_large_it_is() -> None:
    model = tiny_model()
    stream = FINE_TUNE.open_stream(model, resources())
    stream.write(BATCHES[0])
    edit = stream.write(BATCHES[1])
    edited = weights_with(model, edit)
    for name, update in edit.card.extra["updates"].items():
        weight = model.model.get_parameter(name).double()
        moved = float((edited[name].double() - weight).norm())
        if norm := float(weight.norm()):  # biases begin at zero
            assert update["relative_norm"] == pytest.approx(moved / norm, rel=1e-4)
        else:
            assert update["relative_norm"] is None
