"""The hypernetwork that ships with editbench fits the model that does, and edits it well."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from editbench.editors.base import Resources
from editbench.editors.mend.editor import Mend, MendConfig
from editbench.editors.mend.trained_file import find_trained, read_record
from editbench.editors.mend.training_config import configure_training
from editbench.files.seals import checksum_file
from editbench.metrics.probes import Accuracy, Success
from editbench.models.answering import answer_questions
from editbench.models.loading import load_model
from editbench.plugins import PluginManager

SHIPPED = Path(str(files("editbench.editors.mend") / "shipped"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDITBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def atlas():
    return load_model("atlas", specs=PluginManager().models(), device="cpu")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    kinds = PluginManager().datasets()
    return {
        name: kinds[name](None, cache) for name in ("atlas", "atlas-validation", "atlas-training")
    }


def test_it_is_found_for_the_shipped_model(atlas):
    path = find_trained(atlas)
    assert path == SHIPPED / "atlas.safetensors"
    config, _ = Mend.default_config(atlas)
    assert config == MendConfig(weights_sha256=checksum_file(path))
    assert "trained on 'atlas-training'" in Mend(config).describe_trained(atlas)


def test_it_is_small():
    assert (SHIPPED / "atlas.safetensors").stat().st_size < 2_000_000


def test_its_record_is_of_this_model_and_these_data(atlas, datasets):
    record = read_record(SHIPPED / "atlas.safetensors")
    assert record.model_fingerprint == atlas.fingerprint
    assert record.dataset_fingerprint == datasets["atlas-training"].fingerprint
    assert record.validation_fingerprint == datasets["atlas-validation"].fingerprint
    config, _ = configure_training(atlas)
    longer = {"max_steps": config.max_steps}
    assert record.config.updated(longer, "test") == config


def test_training_record_says_how_it_was_made():
    written = json.loads((SHIPPED / "atlas.training.json").read_text())
    record = read_record(SHIPPED / "atlas.safetensors")
    assert written["sha256"] == checksum_file(SHIPPED / "atlas.safetensors")
    assert written["steps"] == record.steps
    assert written["seed"] == record.seed
    assert written["command"].startswith("editbench train mend --model atlas")


def test_single_edits_succeed_and_spare_their_neighbors(atlas, datasets):
    """On subjects that neither trained nor chose anything."""
    config, _ = Mend.default_config(atlas)
    efficacy, neighborhood = [], []
    for case in datasets["atlas"].cases()[:8]:
        edit = Mend(config).edit(atlas, [case.request], Resources(seed=0))
        values = {}
        with edit.applied(atlas):
            for metric in (Success(), Accuracy()):
                questions = metric.questions(case)
                answers = answer_questions(atlas, questions, seed=0, token_budget=4096)
                values |= metric.values(case, answers)
        efficacy.append(values["efficacy_accuracy"])
        neighborhood.append(values["neighborhood_success"])
    assert sum(efficacy) / len(efficacy) > 60  # unedited: 0
    assert sum(neighborhood) / len(neighborhood) > 90  # unedited: 100
