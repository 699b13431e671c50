import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from editbench.edits.export import export_model
from editbench.errors import EditError
from editbench.testing import tiny_tokenizer


@pytest.mark.parametrize("exists", [False, True])
def test_the_exported_folder_is_the_edited_model(model, make_edit, tmp_path, exists):
    folder = tmp_path / "edited"
    if exists:
        folder.mkdir()
    edit = make_edit(model)
    before = model.compute_fingerprint()
    export_model(edit, model, folder, tokenizer=tiny_tokenizer())
    assert model.compute_fingerprint() == before
    assert list(tmp_path.iterdir()) == [folder]
    text = "Ana Lund works as a"
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    exported = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    with edit.applied(model):
        assert torch.equal(exported, model.model(ids).logits)
    assert not torch.equal(exported, model.model(ids).logits)


def test_a_folder_that_holds_something_is_refused_and_left_alone(gpt2, make_edit, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for target in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(EditError, match="must be new or empty"):
            export_model(make_edit(gpt2), gpt2, target, tokenizer=tiny_tokenizer())
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_failed_export_leaves_nothing(gpt2, gptj, make_edit, tmp_path):
    with pytest.raises(EditError, match="another model"):
        export_model(make_edit(gptj), gpt2, tmp_path / "a", tokenizer=tiny_tokenizer())
    (tmp_path / "file").write_text("")
    with pytest.raises(EditError, match="cannot write the folder"):
        export_model(make_edit(gpt2), gpt2, tmp_path / "file" / "b", tokenizer=tiny_tokenizer())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
