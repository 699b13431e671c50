"""A fact that another takes the place of is preserved no longer."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.editbench.editors.test_carried import EDITORS, through_a_file
from tests.editbench.editors.test_streams import BATCHES, CLOSED_FORM, REQUESTS, resources

from editbench.editors.closed_form.dials import Dials
from editbench.editors.closed_form.solving import PreservedValues
from editbench.editors.stream import WrittenFacts
from editbench.edits.weight_edit import WeightEdit, make_dense
from editbench.requests import EditRequest, cut_batches, find_superseded
from editbench.second_moments.obtaining import LayerMoments
from editbench.testing import tiny_model

D_KEY, D_VALUE = 40, 6
REVISED = EditRequest(
    "later", REQUESTS[0].subject, REQUESTS[0].prompt, "juggler", REQUESTS[0].relation
)


def rows(n: int, seed: int, width: int = D_KEY) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "dials",
    [
        Dials(weight=3.0, history=True),
        Dials(weight=3.0, history=True, ridge=0.5),
        Dials(null_space=(0.5, "share"), ridge=1.0, history=True),
        Dials(null_space=(0.5, "share"), ridge=1.0, null_space_shrinks=True),
    ],
    ids=["history", "ridge", "null space", "shrinking null space"],
)
@pytest.mark.parametrize("places", [[1], [0, 5], [3, 4, 5]])
def test_it_is_as_if_it_had_never_been_added(dials: Dials, places: list[int]) -> None:
    ordinary = rows(200, 0).double()
    moments = LayerMoments({1: lambda: ordinary.T @ ordinary / 200})
    first, second = rows(3, 1), rows(3, 2)
    later, wanted = rows(2, 3), rows(2, 4, D_VALUE)
    revised, never = (PreservedValues(moments, dials, None) for _ in range(2))
    for start, keys in ((0, first), (3, second)):
        revised.solve(1, keys, rows(3, 5, D_VALUE))
        revised.add(1, keys, start)
        left = [place not in places for place in range(start, start + 3)]
        if any(left):
            never.add(1, keys[torch.tensor(left)], start)
    never._asked.add(1)  # a stream's first batch has no history
    with_them = make_dense(revised.solve(1, later, wanted))
    revised.forget(places)
    found, expected = (make_dense(each.solve(1, later, wanted)) for each in (revised, never))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(found, with_them, rtol=1e-6)


def test_a_stream_lets_go_of_what_is_superseded() -> None:
    stream = CLOSED_FORM["history"].open_stream(tiny_model(), resources())
    n_written = 0
    for batch in BATCHES:
        stream.write(batch)
        n_written += len(batch)
    stream.write([REVISED])
    for written in stream._preserved._written.values():
        places = [place for part in written for place in part.places]
        assert places == [*range(1, n_written), n_written]


def test_a_stream_that_goes_on_has_let_go_as_well(tmp_path: Path) -> None:
    for name in ("history", "evoedit"):
        editor, model = EDITORS[name], tiny_model()
        given = resources(cache=tmp_path / "cache")
        more = [EditRequest("more", "Nora Rau", "{} works as a", "poet")]
        batches = [*BATCHES[:2], [REVISED], more]
        whole = editor.open_stream(model, given)
        for batch in batches:
            expected = whole.write(batch)
        stream = editor.open_stream(model, given)
        for batch in batches[:3]:
            stream.write(batch)
        assert stream.carried is not None
        carried = through_a_file(stream.carried, tmp_path / "carried.safetensors")
        found = editor.open_stream(model, given, carried).write(more)
        assert isinstance(found, WeightEdit)
        assert isinstance(expected, WeightEdit)
        assert found.identity == expected.identity


@pytest.mark.parametrize("name", EDITORS)
def test_no_editor_keeps_the_old_fact_without_a_word(name: str) -> None:
    """The later fact is written, or the card says why it is not; the older one is superseded."""
    stream = EDITORS[name].open_stream(tiny_model(), resources())
    stream.write(BATCHES[0])
    before = stream.write(BATCHES[1])
    after = stream.write([REVISED])
    if "facts" not in after.card.extra:
        assert name == "ft-w"
        assert after.identity != before.identity
        return
    facts = {fact["case_id"]: fact for fact in after.card.extra["facts"]}
    assert facts[REQUESTS[0].case_id]["status"] == "superseded"
    assert facts["later"]["status"] != "superseded"
    if facts["later"]["status"] == "skipped":
        assert facts["later"]["why"]
    else:
        assert after.identity != before.identity


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            EditRequest,
            case_id=st.just("1"),
            subject=st.sampled_from(["Lyon", "Nice"]),
            prompt=st.sampled_from(["{} lies in", "{} is in"]),
            target=st.sampled_from(["Spain", "Spain ", "Peru", "Chad"]),
            relation=st.sampled_from([None, "lies in"]),
        ),
        max_size=10,
    ),
    st.integers(1, 4),
)
def test_batch_by_batch_the_same_facts_are_superseded(
    requests: list[EditRequest], batch_size: int
) -> None:
    written = WrittenFacts()
    for batch in cut_batches(requests, batch_size):
        n_earlier = len(written.requests)
        replaced = written.add(batch)
        superseded = find_superseded(written.requests)
        about = {request.subject for request in batch}
        assert replaced == [
            place for place in sorted(superseded)
            if place < n_earlier and written.requests[place].subject in about
        ]  # fmt: skip
        told = written.tell([{"status": "written"}] * len(written.requests))
        found = {place for place, fact in enumerate(told) if fact["status"] == "superseded"}
        assert found == superseded.keys()
