"""The work of one edit, divided: the parts together make the whole."""

from itertools import chain
from pathlib import Path

import pytest
import torch

from editbench.editors.base import Resources, Share, report_nothing
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.rome import Rome, RomeConfig
from editbench.editors.second_moments.collection import collect_second_moments
from editbench.editors.targets.target_hidden import choose_share
from editbench.models import memory_budget
from editbench.models.editable import EditableModel
from editbench.testing import tiny_model, toy_cases, toy_corpus
from memit_core import load_second_moments

REQUESTS = [case.request for case in toy_cases(32)]


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model(n_layers=3)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(memory_budget, "_CPU_GRADIENT_TOKENS", 48)


def make_memit() -> Memit:
    return Memit(
        MemitConfig(
            critical_layers=(0, 1),
            preservation_weight=10.0,
            n_steps=4,
            n_context_prefixes=2,
            second_moment_tokens=2000,
        )
    )


def resources(cache: Path, heard: list[str], second_moments: Path | None = None) -> Resources:
    return Resources(
        seed=0,
        cache=cache,
        second_moments=second_moments,
        corpus=toy_corpus(),
        report_progress=lambda stage, done, total, note="": heard.append(f"{stage}: {note}"),
    )


def test_shares_are_whole_chunks_and_together_everything(model):
    def shares(n: int) -> list[list[str]]:
        return [
            [
                request.case_id
                for request in choose_share(
                    model, REQUESTS, layer=1, prefixes=["", "So. "], share=Share(index, n)
                )
            ]
            for index in range(n)
        ]

    assert sorted(chain.from_iterable(shares(3)), key=int) == [
        request.case_id for request in REQUESTS
    ]
    assert all(shares(3))
    chunks = [chunk for chunk in shares(32) if chunk]
    assert len(chunks) > 3
    for index, share in enumerate(shares(3)):
        assert share == list(chain.from_iterable(chunks[index::3]))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_an_edit_is_the_same_with_and_without_shares(model, tmp_path, n):
    memit, heard = make_memit(), []
    folder = tmp_path / "divided" / "second_moments"
    before = model.compute_fingerprint()
    for index in range(n):
        memit.prepare(model, REQUESTS, resources(tmp_path / "divided", []), Share(index, n))
    assert model.compute_fingerprint() == before
    if n > 1:
        shards = [load_second_moments(path) for path in folder.glob("*-shards/*.safetensors")]
        counts = [shard.moments[1].n_tokens for shard in shards]
        assert len(counts) == n
        assert sum(counts) == 2000
        assert min(counts) > 1500 / n
    divided = memit.edit(model, REQUESTS, resources(tmp_path / "divided", heard))
    assert "target hidden states: 32 from the cache" in heard
    assert not any(line.startswith("second moments") for line in heard)
    (joined,) = folder.rglob("*.safetensors")
    assert not list(folder.glob("*-shards"))
    moments = load_second_moments(joined).moments
    expected = collect_second_moments(model, toy_corpus(), [0, 1], 2000, report_nothing)
    for layer, moment in expected.items():
        assert moments[layer].n_tokens == 2000
        difference = moments[layer].moment() - moment.moment()
        assert difference.norm() < 1e-8 * moment.moment().norm()
    # Given the same second moments, all else is the same bits.
    whole = memit.edit(model, REQUESTS, resources(tmp_path / "whole", [], joined))
    assert divided.updates.keys() == whole.updates.keys()
    for name, update in whole.updates.items():
        assert isinstance(update, torch.Tensor)  # of higher rank than the tiny weights have
        assert torch.equal(divided.updates[name], update)


def test_shares_of_rome_collect_second_moments(model, tmp_path):
    config = RomeConfig(
        critical_layers=(1,), n_steps=2, n_context_prefixes=1, second_moment_tokens=2000
    )
    rome, heard = Rome(config), []
    for index in range(2):
        rome.prepare(model, REQUESTS, resources(tmp_path, []), Share(index, 2))
    assert len(list(tmp_path.glob("second_moments/*-shards/*.safetensors"))) == 2
    divided = rome.edit(model, REQUESTS[:2], resources(tmp_path, heard))
    assert not any(line.startswith("second moments") for line in heard)
    assert not list(tmp_path.glob("second_moments/*-shards"))
    whole = rome.edit(model, REQUESTS[:2], resources(tmp_path / "whole", []))
    for name, update in whole.updates.items():
        torch.testing.assert_close(divided.updates[name].left, update.left)
        torch.testing.assert_close(divided.updates[name].right, update.right)
