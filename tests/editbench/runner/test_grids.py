"""Which trials a grid holds, and how each is addressed."""

import pytest
from tests.editbench.runner.toys import make_grid, random_update

from editbench.datasets.corpus import Corpus
from editbench.editors.base import EditorConfig
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.unedited import Unedited
from editbench.errors import SecondMomentError
from editbench.runner import Inputs


def test_a_grid_is_all_combinations_and_the_unedited_model_once_for_each(model):
    trials = make_grid(model, random_update(1), random_update(2), n_edits=[1, 2], seeds=[0, 1])
    assert [(t.editor.name, t.n_edits, t.seed) for t in trials] == [
        (editor, n, seed)
        for n in (1, 2)
        for seed in (0, 1)
        for editor in ("unedited", "random", "random")
    ]
    assert len({trial.hash for trial in trials}) == len(trials)


def test_what_is_asked_for_twice_is_run_once(model):
    explicit = Unedited(EditorConfig())
    trials = make_grid(model, explicit, random_update(), random_update(), seeds=[0, 0])
    assert [trial.editor.name for trial in trials] == ["unedited", "random"]


def test_a_trial_is_addressed_by_the_content_of_its_inputs(model, tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, content in zip(paths, (b"1", b"1", b"2"), strict=True):
        path.write_bytes(content)
    prefixes = [ContextPrefixes(((""),)), ContextPrefixes((("",), ("So. ",)))]
    corpora = [Corpus("wiki", "1", list), Corpus("wiki", "2", list)]

    def hash_with(**inputs: object) -> str:
        trials = make_grid(model, random_update(), inputs=lambda m, d: Inputs(**inputs))
        return trials[1].hash

    same = [hash_with(second_moments=path) for path in paths[:2]]
    assert same[0] == same[1]
    different = [
        hash_with(),
        same[0],
        hash_with(second_moments=paths[2]),
        *(hash_with(context_prefixes=prefix) for prefix in prefixes),
        *(hash_with(corpus=corpus) for corpus in corpora),
    ]
    assert len(set(different)) == len(different)
    with pytest.raises(SecondMomentError, match="cannot read the file"):
        hash_with(second_moments=tmp_path / "none")


def test_the_unedited_model_needs_no_inputs(model):
    given = Inputs(corpus=Corpus("wiki", "1", list))
    with_corpus = make_grid(model, inputs=lambda m, d: given)
    assert with_corpus[0].hash == make_grid(model)[0].hash
