"""The work of one edit, divided: the parts together make the whole."""

from itertools import chain
from pathlib import Path

import pytest
import torch

from editbench.editors.base import Resources, Share
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.targets.target_hidden import choose_share
from editbench.models import memory_budget
from editbench.models.editable import EditableModel
from editbench.progress import report_nothing
from editbench.second_moments.collection_files import collect_to_file
from editbench.testing import tiny_model, toy_cases, toy_corpus

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


@pytest.mark.parametrize("is_given", [False, True])
def test_an_edit_is_the_same_bits_with_and_without_shares(model, tmp_path, is_given):
    memit, heard = make_memit(), []
    given = collected(model, tmp_path) if is_given else None
    divided, whole = (resources(tmp_path / name, heard, given) for name in ("divided", "whole"))
    before = model.compute_fingerprint()
    for index in range(3):
        memit.prepare(model, REQUESTS, divided, Share(index, 3))
        assert len(list(tmp_path.rglob("*.safetensors"))) == 1  # the first share's, or given
    assert model.compute_fingerprint() == before
    heard.clear()
    found = memit.edit(model, REQUESTS, divided).updates
    assert "target hidden states: 32 from the cache" in heard
    assert not any(line.startswith("second moments") for line in heard)
    expected = memit.edit(model, REQUESTS, whole).updates
    assert found.keys() == expected.keys()
    for name, update in expected.items():
        assert isinstance(update, torch.Tensor)  # of higher rank than the tiny weights have
        assert torch.equal(found[name], update)


def collected(model: EditableModel, folder: Path) -> Path:
    path = folder / "given.safetensors"
    collect_to_file(model, toy_corpus(), [0, 1], 2000, path, report_nothing)
    return path
