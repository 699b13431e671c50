"""Second moments: provenance, refusal of what does not fit, resumption."""

from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import save_file

from editbench.datasets.corpus import Corpus
from editbench.editors.base import Resources
from editbench.errors import SecondMomentError
from editbench.progress import report_nothing
from editbench.second_moments.obtaining import (
    collect_second_moments,
    collect_to_file,
    obtain_second_moments,
    read_second_moments,
)
from editbench.testing import tiny_model, toy_corpus


def test_collection_ends_after_exactly_the_tokens_asked_for() -> None:
    model = tiny_model()
    found = collect_second_moments(model, toy_corpus(), [1, 2], 777, report_nothing)
    assert [moment.n_tokens for moment in found.values()] == [777, 777]


def test_an_interrupted_collection_goes_on_where_it_was(tmp_path, monkeypatch) -> None:
    import editbench.second_moments.collection as module

    monkeypatch.setattr(module, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(module, "_WORK_FOR_EACH_WRITING", 0)
    model = tiny_model()
    monkeypatch.setattr(type(model.memory), "tokens_beside", lambda *_, **__: 64)
    n_tokens = 6_000
    whole = collect_second_moments(model, toy_corpus(), [1, 2], n_tokens, report_nothing)

    class Killed(BaseException):
        pass

    def die_half_way(stage: str, done: int, total: int, note: str = "") -> None:
        if done > n_tokens // 2:
            raise Killed

    path = tmp_path / "moments.safetensors"
    with pytest.raises(Killed):
        collect_to_file(model, toy_corpus(), [1, 2], n_tokens, path, die_half_way)
    assert not path.exists()

    first_report: list[int] = []

    def note_first(stage: str, done: int, total: int, note: str = "") -> None:
        first_report.append(done)

    collect_to_file(model, toy_corpus(), [1, 2], n_tokens, path, note_first)
    assert first_report[0] > 1_000
    resumed = read_second_moments(model, [1, 2], path)
    for layer, moment in whole.items():
        torch.testing.assert_close(resumed[layer], moment.moment(), rtol=1e-10, atol=1e-12)
    assert [file.name for file in tmp_path.iterdir()] == ["moments.safetensors"]


def test_the_cache_is_used_and_keyed_by_the_corpus(tmp_path) -> None:
    model = tiny_model()
    n_reads = 0

    def count_reads() -> Iterator[str]:
        nonlocal n_reads
        n_reads += 1
        yield from toy_corpus().texts()

    one = Resources(seed=0, cache=tmp_path, corpus=Corpus("one", "1", count_reads))
    other = Resources(seed=0, cache=tmp_path, corpus=Corpus("other", "2", count_reads))
    first = obtain_second_moments(model, [1], 500, one)
    again = obtain_second_moments(model, [1], 500, one)
    assert n_reads == 1
    assert torch.equal(first[1], again[1])
    obtain_second_moments(model, [1], 500, other)
    assert n_reads == 2


def test_moments_of_another_model_are_refused_with_both_names(tmp_path) -> None:
    path = tmp_path / "moments.safetensors"
    other = tiny_model(seed=1)
    other.name = "stranger"
    collect_to_file(other, toy_corpus(), [1], 500, path, report_nothing)
    with pytest.raises(SecondMomentError, match=r"got 'stranger' .* expected 'tiny'"):
        read_second_moments(tiny_model(), [1], path)


@pytest.mark.filterwarnings("ignore:second moments. .* does not say which model")
def test_a_wrong_shape_is_refused_with_both_shapes(tmp_path) -> None:
    path = tmp_path / "moments.safetensors"
    save_file({"layers.1": torch.eye(7)}, path)
    with pytest.raises(SecondMomentError, match=r"got \(7, 7\); expected \(96, 96\)"):
        read_second_moments(tiny_model(), [1], path)


def test_a_file_without_provenance_is_taken_with_a_warning(tmp_path) -> None:
    path = tmp_path / "moments.safetensors"
    save_file({"layers.1": torch.eye(96)}, path)
    with pytest.warns(UserWarning, match="does not say which model"):
        found = read_second_moments(tiny_model(), [1], path)
    assert torch.equal(found[1], torch.eye(96))


@pytest.mark.filterwarnings("ignore:second moments. .* does not say which model")
def test_a_missing_layer_is_named(tmp_path) -> None:
    path = tmp_path / "moments.safetensors"
    save_file({"layers.1": torch.eye(96)}, path)
    with pytest.raises(SecondMomentError, match=r"no layer 2, got layers \[1\]"):
        read_second_moments(tiny_model(), [1, 2], path)


def test_no_file_and_no_corpus_is_an_error_that_says_what_to_give() -> None:
    with pytest.raises(SecondMomentError, match=r"--second-moments FILE .* or --corpus"):
        obtain_second_moments(tiny_model(), [1], 100, Resources(seed=0))


def test_a_corpus_without_text_is_an_error() -> None:
    empty = Corpus("empty", "0", list)
    with pytest.raises(SecondMomentError, match="'empty' holds no text"):
        collect_second_moments(tiny_model(), empty, [1], 100, report_nothing)
