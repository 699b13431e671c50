import pytest

from editbench.edits.card import EditCard, hash_requests
from editbench.edits.edit import NoEdit
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import EditError
from editbench.requests import EditRequest

ANA = EditRequest("0", "Ana Lund", "{} works as a", "poet")
ZOE = EditRequest("1", "Zoë Sato", "The job of {} is", "pilot", relation="job")


def test_hash_of_requests_depends_on_every_field_and_the_order():
    others = [
        [ZOE, ANA],
        [ANA],
        [ANA, EditRequest("2", "Zoë Sato", "The job of {} is", "pilot", relation="job")],
        [ANA, EditRequest("1", "Zoe Sato", "The job of {} is", "pilot", relation="job")],
        [ANA, EditRequest("1", "Zoë Sato", "The task of {} is", "pilot", relation="job")],
        [ANA, EditRequest("1", "Zoë Sato", "The job of {} is", "judge", relation="job")],
        [ANA, EditRequest("1", "Zoë Sato", "The job of {} is", "pilot")],
    ]
    hashes = [hash_requests(requests) for requests in ([ANA, ZOE], *others)]
    assert len(set(hashes)) == len(hashes)
    assert hash_requests([ANA, ZOE]) == hashes[0]


def test_card_says_where_an_edit_comes_from(gpt2):
    card = EditCard.of(gpt2, editor="x", config={"a": 1}, requests=[ANA, ZOE], extra={"b": 2})
    assert card.model_name == "tiny"
    assert card.model_fingerprint == gpt2.fingerprint
    assert (card.editor, card.config, card.extra, card.n_edits) == ("x", {"a": 1}, {"b": 2}, 2)
    assert card.requests_hash == hash_requests([ANA, ZOE])
    assert {"editbench", "memit-core", "torch", "transformers"} <= card.versions.keys()


def test_no_edit_changes_nothing_and_still_belongs_to_its_model(gpt2, gptj):
    edit = NoEdit.of(gpt2, [ANA])
    before = gpt2.compute_fingerprint()
    with edit.applied(gpt2):
        assert gpt2.compute_fingerprint() == before
    assert not edit.changes_something
    assert edit.card.editor == "unedited"
    with pytest.raises(EditError, match="another model"), edit.applied(gptj):
        pass


def test_no_edit_is_saved_as_an_edit_file_without_updates(gpt2, tmp_path):
    edit = NoEdit.of(gpt2, [ANA])
    edit.save(tmp_path / "none.safetensors")
    loaded = WeightEdit.load(tmp_path / "none.safetensors")
    assert loaded.updates == {}
    assert loaded.card == edit.card
    assert not loaded.changes_something
