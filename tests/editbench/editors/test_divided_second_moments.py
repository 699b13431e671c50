"""Second moments that shares of a trial collect, and whoever needs the whole joins."""

import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import editbench.editors.second_moments.collection as second_moment_collection
from editbench.datasets.corpus import Corpus
from editbench.editors.base import Progress, Resources, Share, report_nothing
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.second_moments.collection import (
    collect_second_moments,
    describe_collection,
)
from editbench.editors.second_moments.collection_files import name_checkpoint
from editbench.editors.second_moments.obtaining import (
    LayerMoments,
    cached_path,
    obtain_second_moments,
    prepare_second_moments,
)
from editbench.models.editable import EditableModel
from editbench.testing import tiny_model, toy_corpus
from memit_core import SecondMomentFile

LAYERS = [1, 2]
N_TOKENS = 3_001


@pytest.fixture(scope="module")
def model() -> EditableModel:
    """In float64, where the keys hardly depend on which texts are in a batch together."""
    model = tiny_model()
    model.model.double()
    return model


@pytest.fixture(scope="module")
def whole(model) -> dict[int, torch.Tensor]:
    found = collect_second_moments(model, toy_corpus(), LAYERS, N_TOKENS, report_nothing)
    return {layer: moment.moment() for layer, moment in found.items()}


def in_cache(cache: Path, corpus: Corpus | None = None, report: Progress = report_nothing):
    return Resources(seed=0, cache=cache, corpus=corpus or toy_corpus(), report_progress=report)


def prepare(model: EditableModel, resources: Resources, *shares: Share) -> None:
    for share in shares:
        rest = prepare_second_moments(model, LAYERS, N_TOKENS, resources, "mlp", share)
        assert rest == share


def obtain(model: EditableModel, resources: Resources) -> LayerMoments:
    return obtain_second_moments(model, LAYERS, N_TOKENS, resources)


def names_in(cache: Path) -> set[str]:
    """Files of the cache, without locks, relative to the folder of second moments."""
    folder = cache / "second_moments"
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)) for path in files}


def check_joined(model, cache: Path, found: LayerMoments, whole) -> None:
    for layer, expected in whole.items():
        assert (found[layer] - expected).norm() < 1e-12 * expected.norm()
    path = cached_path(cache, model, toy_corpus(), LAYERS, N_TOKENS)
    assert names_in(cache) == {path.name}
    assert not list(path.parent.glob("*-shards"))
    file = SecondMomentFile(path)
    assert file.provenance == describe_collection(model, toy_corpus(), LAYERS, N_TOKENS)
    assert file.n_tokens == {"1": N_TOKENS, "2": N_TOKENS}


def counting_reads(wait: Callable[[int], None] = lambda n: None) -> tuple[Corpus, list[int]]:
    """The toy corpus, and a list that gets an entry whenever somebody begins to read it."""
    reads: list[int] = []

    def texts() -> Iterator[str]:
        reads.append(len(reads) + 1)
        wait(reads[-1])
        yield from toy_corpus().texts()

    return Corpus("toy", "toy-1", texts), reads


def note_done(numbers: list[int], stage: str, done: int, total: int, note: str = "") -> None:
    if stage == "second moments":
        numbers.append(done)


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1_000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def exchange(path: Path) -> None:
    path.write_bytes(path.with_name("1.safetensors").read_bytes())


def spoil_numbers(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) * float("nan") for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_shares_of_memit_are_joined_to_what_is_collected_whole(model, whole, tmp_path, n):
    config = MemitConfig(
        critical_layers=LAYERS, preservation_weight=1.0, n_steps=1, second_moment_tokens=N_TOKENS
    )
    done: list[int] = []
    for index in range(n):
        report = partial(note_done, done)
        Memit(config).prepare(model, [], in_cache(tmp_path, report=report), Share(index, n))
        assert 0 < max(done) < 1.5 * N_TOKENS / n
        done.clear()
    assert {Path(name).name for name in names_in(tmp_path)} == {
        f"{index + 1}.safetensors" for index in range(n)
    }
    found = obtain(model, in_cache(tmp_path, report=partial(note_done, done)))
    assert not done
    check_joined(model, tmp_path, found, whole)


@pytest.mark.parametrize("damage", [remove, truncate, empty, exchange, spoil_numbers])
def test_a_shard_that_is_missing_or_damaged_is_collected_alone(model, whole, tmp_path, damage):
    prepare(model, in_cache(tmp_path), Share(0, 3), Share(1, 3), Share(2, 3))
    (second,) = tmp_path.rglob("2.safetensors")
    damage(second)
    done: list[int] = []
    resources = in_cache(tmp_path, report=partial(note_done, done))
    is_there = second.exists()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = obtain(model, resources)
    assert [("computed anew" in str(each.message)) for each in caught] == [True] * is_there
    check_joined(model, tmp_path, found, whole)
    assert 0 < max(done) < 0.5 * N_TOKENS


def test_what_is_there_is_not_collected_again(model, whole, tmp_path):
    corpus, reads = counting_reads()
    resources = in_cache(tmp_path, corpus)
    prepare(model, resources, Share(0, 2), Share(0, 2), Share(1, 2))
    assert len(reads) == 2
    # Another trial, divided among more workers: the shards stay those of the first.
    prepare(model, resources, Share(0, 3), Share(1, 3), Share(2, 3))
    check_joined(model, tmp_path, obtain(model, resources), whole)
    prepare(model, resources, Share(0, 2), Share(1, 2))
    assert len(reads) == 2
    check_joined(model, tmp_path, obtain(model, resources), whole)


def test_fewer_workers_collect_all_shards_that_others_began(model, whole, tmp_path):
    corpus, reads = counting_reads()
    resources = in_cache(tmp_path, corpus)
    prepare(model, resources, Share(3, 5), Share(0, 2), Share(1, 2))
    assert len(reads) == 5
    check_joined(model, tmp_path, obtain(model, resources), whole)
    assert len(reads) == 5


def test_the_user_s_own_file_leaves_nothing_to_prepare(model, tmp_path):
    obtain(model, in_cache(tmp_path / "one"))
    (path,) = (tmp_path / "one").rglob("*.safetensors")
    corpus, reads = counting_reads()
    resources = Resources(0, tmp_path / "two", corpus=corpus, second_moments=path)
    prepare(model, resources, Share(0, 2), Share(1, 2))
    assert not reads
    assert not (tmp_path / "two").exists()


def test_two_workers_with_the_same_share_collect_it_once(model, tmp_path):
    second_reads = threading.Event()

    def wait(n_reads: int) -> None:
        if n_reads == 2:
            second_reads.set()
        second_reads.wait(timeout=0.5)

    corpus, reads = counting_reads(wait)
    resources = in_cache(tmp_path, corpus)
    workers = [
        threading.Thread(target=prepare, args=(model, resources, Share(0, 2))) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(reads) == 1


def test_an_interrupted_shard_goes_on_where_it_was(model, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(second_moment_collection, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(type(model.memory), "tokens_beside", lambda *_, **__: 32)

    class Killed(BaseException):
        pass

    def die_late(stage: str, done: int, total: int, note: str = "") -> None:
        if done > N_TOKENS // 3:
            raise Killed

    for index in range(2):
        with pytest.raises(Killed):
            prepare(model, in_cache(tmp_path, report=die_late), Share(index, 2))
    assert {Path(name).name for name in names_in(tmp_path)} == {
        "1.safetensors.partial",
        "2.safetensors.partial",
    }
    name_checkpoint(cached_path(tmp_path, model, toy_corpus(), LAYERS, N_TOKENS)).touch()
    done: list[int] = []
    resources = in_cache(tmp_path, report=partial(note_done, done))
    prepare(model, resources, Share(1, 2))
    assert done[0] > 400
    done.clear()
    check_joined(model, tmp_path, obtain(model, resources), whole)
    assert done[0] > 400


def test_a_corpus_of_fewer_texts_than_shares_is_no_error(model, tmp_path):
    short = Corpus("short", "1", lambda: list(toy_corpus().texts())[:2])
    prepare(model, in_cache(tmp_path, short), *(Share(index, 3) for index in range(3)))
    assert len(names_in(tmp_path)) == 2
    found = obtain(model, in_cache(tmp_path, short))
    expected = collect_second_moments(model, short, LAYERS, N_TOKENS, report_nothing)
    for layer in LAYERS:
        assert torch.equal(found[layer], expected[layer].moment())
    assert len(names_in(tmp_path)) == 1
