"""The embedded world as a dataset, its text, and the model's entry."""

from itertools import islice

import pytest

from editbench.editors.memit import Memit
from editbench.errors import ConfigError
from editbench.models.builtin_specs import BUILTIN_SPECS
from editbench.models.loading import load_model
from editbench.plugins import PluginManager
from editbench.plugins.atlas import (
    ATLAS,
    AtlasDataset,
    AtlasTraining,
    AtlasValidation,
    atlas_corpus,
)
from editbench.requests import find_conflicts


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return AtlasDataset(None, tmp_path_factory.mktemp("cache"))


def test_cases_can_all_be_edited_together_and_judged(dataset):
    cases = dataset.cases()
    assert len(cases) >= 1000
    assert find_conflicts([case.request for case in cases]) == []
    for case in cases:
        assert {probe.kind for probe in case.probes} == {"efficacy", "paraphrase", "neighborhood"}
        assert case.request.target != case.target_true
    assert dataset.cases() is cases


def test_fingerprint_is_that_of_the_cases(dataset, tmp_path, monkeypatch):
    again = AtlasDataset(None, tmp_path)
    assert again.fingerprint == dataset.fingerprint
    fewer = AtlasDataset(None, tmp_path)
    monkeypatch.setattr(fewer, "_cases", dataset.cases()[1:])
    assert fewer.fingerprint != dataset.fingerprint


def test_held_out_texts_are_about_nobody_who_is_edited(dataset, tmp_path):
    texts = dataset.held_out_texts()
    assert texts == AtlasValidation(None, tmp_path).held_out_texts()
    subjects = {case.request.subject for case in dataset.cases()}
    assert not [text for text in texts for subject in subjects if subject in text]
    assert 100 < len(texts) < 1000
    assert all(len(text.split()) > 1 for text in texts)
    # The training split edits those whom the texts are about.
    assert AtlasTraining(None, tmp_path).held_out_texts() == ()


@pytest.mark.parametrize("kind", [AtlasDataset, AtlasValidation, AtlasTraining])
def test_it_reads_no_file(kind, tmp_path):
    with pytest.raises(ConfigError, match=f"'{kind.name}': it is embedded and reads no file"):
        kind(tmp_path, tmp_path)


def test_test_cases_are_those_of_the_recorded_results(dataset):
    """A change of them would make every recorded result one of another dataset."""
    assert dataset.fingerprint == "7b464ba95dde88d7cc5f29f3fbd9adcd3fa58cb98363bed8bacb2f03940057c2"


def test_subjects_that_choose_or_train_are_never_reported_on(dataset, tmp_path):
    subjects = [
        {case.request.subject for case in each.cases()}
        for each in (dataset, AtlasValidation(None, tmp_path), AtlasTraining(None, tmp_path))
    ]
    assert sum(map(len, subjects)) == len(set().union(*subjects))
    assert len(AtlasTraining(None, tmp_path).cases()) > 4000


def test_text_can_be_read_more_than_once():
    corpus = atlas_corpus()
    texts = list(islice(corpus.texts(), 50))
    assert all(texts)
    assert texts == list(islice(corpus.texts(), 50))
    assert atlas_corpus() == corpus


def test_model_is_loaded_by_its_name_with_its_own_settings():
    model = load_model("atlas", specs=PluginManager().models(), device="cpu")
    assert model.spec is ATLAS
    config, _ = Memit.default_config(model)
    assert config.model_dump()["critical_layers"] == ATLAS.defaults["memit"]["critical_layers"]


@pytest.mark.parametrize("name", ["atlas", *(spec.name for spec in BUILTIN_SPECS)])
def test_published_settings_are_valid(name):
    plugins = PluginManager()
    spec = plugins.models()[name]
    assert "memit" in spec.defaults
    for editor in set(spec.defaults) - {"mend-training"}:
        assert plugins.get_editor(editor).config_type.parse(spec.defaults[editor], name)
        assert spec.source_of(editor)
