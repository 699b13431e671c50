"""Collection in shards, with a length of one's own, and until sampling costs little."""

import random
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch

from editbench.atlas.text import write_ordinary_sentence
from editbench.datasets.corpus import Corpus
from editbench.editors.base import Resources
from editbench.errors import SecondMomentError
from editbench.models.memory_budget import MemoryBudget
from editbench.progress import report_nothing
from editbench.second_moments import collection as second_moment_collection
from editbench.second_moments.collection import collect_second_moments
from editbench.second_moments.collection_files import collect_to_file
from editbench.second_moments.collection_work import TOLERATED_EXCESS
from editbench.second_moments.corpus_keys import Shard, batch_texts
from editbench.second_moments.moment_files import load_second_moments, merge_shards
from editbench.second_moments.obtaining import (
    obtain_second_moments,
    read_second_moments,
)
from editbench.testing import tiny_model, toy_corpus
from memit_core import capture

LAYERS = [1, 2]


def endless_corpus(name: str) -> Corpus:
    def write() -> Iterator[str]:
        chance = random.Random(name)
        for _ in count():
            yield " ".join(write_ordinary_sentence(chance) for _ in range(chance.randint(1, 5)))

    return Corpus(name, name, write)


def collect_shards(folder: Path, n_shards: int, n_tokens: int = 3_001) -> list[Path]:
    paths = [folder / f"{index}.safetensors" for index in range(n_shards)]
    for index, path in enumerate(paths):
        collect_to_file(
            tiny_model(),
            toy_corpus(),
            LAYERS,
            n_tokens,
            path,
            report_nothing,
            shard=Shard(index, n_shards),
        )
    return paths


def test_merged_shards_are_what_one_pass_collects(tmp_path) -> None:
    whole, merged = tmp_path / "whole.safetensors", tmp_path / "merged.safetensors"
    collect_to_file(tiny_model(), toy_corpus(), LAYERS, 3_001, whole, report_nothing)
    paths = collect_shards(tmp_path, 3)
    merge_shards(paths[::-1], merged)
    one, other = load_second_moments(whole), load_second_moments(merged)
    assert one.provenance == other.provenance
    for layer in LAYERS:
        assert one.moments[layer].n_tokens == other.moments[layer].n_tokens == 3_001
        torch.testing.assert_close(
            one.moments[layer].moment(), other.moments[layer].moment(), rtol=1e-9, atol=1e-12
        )
    shares = [load_second_moments(path).moments[1].n_tokens for path in paths]
    assert min(shares) > 800


def test_shards_that_do_not_belong_together_are_refused(tmp_path) -> None:
    out = tmp_path / "merged.safetensors"
    paths = collect_shards(tmp_path, 3, 600)
    with pytest.raises(SecondMomentError, match=r"not all shards are there, missing 2/3\."):
        merge_shards([paths[0], paths[2]], out)
    with pytest.raises(SecondMomentError, match="shard 1/3 is there twice"):
        merge_shards([paths[0], *paths], out)
    (tmp_path / "other").mkdir()
    others = collect_shards(tmp_path / "other", 3, 700)
    with pytest.raises(
        SecondMomentError, match=r"another collection .* got n_tokens 700; expected"
    ):
        merge_shards([*paths[:2], others[2]], out)
    whole = tmp_path / "whole.safetensors"
    collect_to_file(tiny_model(), toy_corpus(), LAYERS, 300, whole, report_nothing)
    with pytest.raises(SecondMomentError, match=f"{whole} is no shard"):
        merge_shards([whole], out)
    with pytest.raises(SecondMomentError, match="cannot be read"):
        merge_shards([tmp_path / "none"], out)
    assert not out.exists()


def test_a_shard_alone_is_not_edited_with(tmp_path) -> None:
    path, _ = collect_shards(tmp_path, 2, 400)
    with pytest.raises(SecondMomentError, match=r"one of 2 shards .* 'editbench stats --merge'"):
        read_second_moments(tiny_model(), LAYERS, path)


def test_shards_count_from_one_and_need_a_count_of_tokens() -> None:
    with pytest.raises(SecondMomentError, match=r"got 4/3; expected one from 1/N to N/N"):
        Shard(3, 3)
    with pytest.raises(SecondMomentError, match=r"'auto'\. Give a count of tokens"):
        collect_second_moments(
            tiny_model(), toy_corpus(), LAYERS, "auto", report_nothing, shard=Shard(0, 2)
        )


def test_texts_are_cut_to_the_length_asked_for() -> None:
    model = tiny_model()
    texts = ["Ana Lund works as a baker, and Boris Sato met Ana Lund."]
    corpus = Corpus("one", "1", lambda: texts)
    found = collect_second_moments(model, corpus, [1], 10**6, report_nothing, max_length=5)
    assert found[1].n_tokens == 5
    ids = model.tokens.encode(texts[0])[:5]
    projection = model.architecture.projection(1, "mlp")
    with torch.no_grad(), capture(model.model, inputs_of=[projection]) as seen:
        model.model(torch.tensor([ids]))
    keys = seen.inputs[projection][0].double()
    torch.testing.assert_close(found[1].moment(), keys.T @ keys / 5)


def test_little_is_padded() -> None:
    chance = random.Random(0)
    lengths = [min(2_048, max(1, int(chance.lognormvariate(4, 1)))) for _ in range(3_000)]
    batches = [batch.rows for batch in batch_texts([[0] * n for n in lengths], 4_096)]
    assert sorted(index for batch in batches for index in batch) == list(range(3_000))
    padded = [len(batch) * max(lengths[index] for index in batch) for batch in batches]
    assert max(padded) <= 4_096
    assert sum(lengths) > 0.98 * sum(padded)
    assert sum(lengths) / len(batches) > 1_000, "batches are too small to be fast"
    assert [batch.rows for batch in batch_texts([[0] * 9, [0]], 4)] == [[1], [0]]


def measure_excess(sampled, truth, keys) -> float:
    columns = keys.double().T
    directions = torch.linalg.solve(sampled, columns)
    directions /= (columns * directions).sum(dim=0)
    least = 1 / (columns * torch.linalg.solve(truth, columns)).sum(dim=0)
    return float(((directions * (truth @ directions)).sum(dim=0) / least).mean()) - 1


def test_auto_stops_where_ten_times_as_many_tokens_say_it_may() -> None:
    model = tiny_model()
    notes: list[str] = []

    def take_notes(stage: str, done: int, total: int, note: str = "") -> None:
        notes.append(note)

    some = collect_second_moments(model, endless_corpus("some"), LAYERS, "auto", take_notes)
    n_tokens = some[1].n_tokens
    assert n_tokens is not None
    assert 5 * 96 < n_tokens < 40 * 96
    assert any("tokens/s, excess" in note for note in notes)
    more = collect_second_moments(
        model, endless_corpus("more"), LAYERS, 10 * n_tokens, report_nothing
    )
    texts = [text for text, _ in zip(endless_corpus("keys").texts(), range(40), strict=False)]
    for layer in LAYERS:
        projection = model.architecture.projection(layer, "mlp")
        with torch.no_grad(), capture(model.model, inputs_of=[projection]) as seen:
            inputs = model.batch([model.tokens.encode(text)[:8] for text in texts])
            model.model(**inputs)
        keys = seen.inputs[projection][inputs["attention_mask"].bool()]
        excess = measure_excess(some[layer].moment(), more[layer].moment(), keys)
        assert 0.2 * TOLERATED_EXCESS < excess < 1.5 * TOLERATED_EXCESS
        few = collect_second_moments(
            model, endless_corpus("some"), [layer], n_tokens // 4, report_nothing
        )
        assert measure_excess(few[layer].moment(), more[layer].moment(), keys) > 2 * excess


def test_an_interrupted_auto_collection_goes_on_with_both_halves(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(second_moment_collection, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(second_moment_collection, "_WORK_FOR_EACH_WRITING", 0)
    model, corpus = tiny_model(), endless_corpus("some")
    whole = collect_second_moments(model, corpus, LAYERS, "auto", report_nothing)
    checkpoint = tmp_path / "partial"

    def die_late(stage: str, done: int, total: int, note: str = "") -> None:
        if "excess" in note:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_second_moments(model, corpus, LAYERS, "auto", die_late, checkpoint=checkpoint)
    reports: list[int] = []

    def note(stage: str, done: int, total: int, note: str = "") -> None:
        reports.append(done)

    found = collect_second_moments(model, corpus, LAYERS, "auto", note, checkpoint=checkpoint)
    assert reports[0] > 4 * 96, "it began anew"
    assert found[1].n_tokens is not None
    n_tokens = found[1].n_tokens
    same = collect_second_moments(model, corpus, LAYERS, n_tokens, report_nothing)
    torch.testing.assert_close(found[1].moment(), same[1].moment(), rtol=1e-5, atol=1e-9)
    assert 0.5 < n_tokens / (whole[1].n_tokens or 0) < 2


def test_within_a_window_an_interrupted_collection_goes_on_where_it_was(
    tmp_path, monkeypatch
) -> None:
    """Windows take long where a model is large, and may be run in other batches afterwards."""
    monkeypatch.setattr(second_moment_collection, "_CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(second_moment_collection, "_WORK_FOR_EACH_WRITING", 0)
    n_tokens, model, budget = 1_000, tiny_model(), 50
    monkeypatch.setattr(MemoryBudget, "tokens_beside", lambda *_, **__: budget)
    whole = collect_second_moments(model, toy_corpus(), LAYERS, n_tokens, report_nothing)
    checkpoint, reports = tmp_path / "partial", []

    def die_at_fifth(stage: str, done: int, total: int, note: str = "") -> None:
        reports.append(done)
        if len(reports) == 5:
            raise KeyboardInterrupt

    arguments = (model, toy_corpus(), LAYERS, n_tokens)
    with pytest.raises(KeyboardInterrupt):
        collect_second_moments(*arguments, die_at_fifth, checkpoint=checkpoint)
    kept, budget = reports[3], 200  # of the fifth nothing was kept
    assert 0 < kept < 16 * 50, "the first window was over"
    found = collect_second_moments(
        *arguments, lambda stage, done, *_: reports.append(done), checkpoint=checkpoint
    )
    assert kept < reports[5] < kept + 2 * budget
    for layer in LAYERS:
        assert found[layer].n_tokens == whole[layer].n_tokens == n_tokens
        torch.testing.assert_close(
            found[layer].moment(), whole[layer].moment(), rtol=1e-5, atol=1e-9
        )


def test_a_corpus_that_ends_too_early_is_said_to() -> None:
    short = Corpus("short", "1", lambda: list(toy_corpus().texts())[:20])
    with pytest.warns(UserWarning, match=r"'short' was not enough, got \d+ tokens"):
        found = collect_second_moments(tiny_model(), short, [1], "auto", report_nothing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = collect_second_moments(tiny_model(), short, [1], 10**6, report_nothing)
    assert found[1].n_tokens == same[1].n_tokens
    torch.testing.assert_close(found[1].moment(), same[1].moment(), rtol=1e-9, atol=1e-12)


def test_auto_is_another_entry_of_the_cache(tmp_path) -> None:
    resources = Resources(seed=0, cache=tmp_path, corpus=endless_corpus("some"))
    auto = obtain_second_moments(tiny_model(), [1], "auto", resources)
    again = obtain_second_moments(tiny_model(), [1], "auto", resources)
    assert auto.provenance is not None
    assert auto.provenance["n_tokens"] == "auto"
    assert torch.equal(auto[1], again[1])
    counted = obtain_second_moments(tiny_model(), [1], 500, resources)
    assert not torch.equal(auto[1], counted[1])
