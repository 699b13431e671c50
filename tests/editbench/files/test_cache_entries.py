"""Entries of the cache: believed where they are whole, else put aside, said once, computed anew."""

import gzip
import json
import random
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path

import pytest
import torch

from editbench.editors.base import Resources
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.optimizer import FinishedTarget
from editbench.files.cache_entries import JsonEntry, put_aside, read_kept
from editbench.files.seals import seal, unseal
from editbench.second_moments.obtaining import obtain_second_moments
from editbench.testing import tiny_model, toy_corpus

CONTENT = {"numbers": [1, 2.5, None], "text": "ü"}


def test_seals_are_of_what_is_said_and_not_of_how_it_is_written() -> None:
    sealed = seal({"b": (1, 2), "a": {3: "x"}})
    read = json.loads(json.dumps(dict(reversed(sealed.items()))))
    assert unseal(read, required=True) == {"b": [1, 2], "a": {"3": "x"}}
    assert unseal({"a": 1}) == {"a": 1}
    for content, required in (({**read, "b": [1]}, False), ({"a": 1}, True), ([1], False)):
        with pytest.raises(ValueError, match=r"checksum|expected a JSON object"):
            unseal(content, required=required)


@pytest.mark.parametrize("name", ["entry.json", "entry.json.gz"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    entry = JsonEntry(tmp_path / "folder" / name, "things")
    assert entry.read(dict) is None
    entry.write(CONTENT)
    assert entry.read(dict) == CONTENT
    assert [path.name for path in entry.path.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", ["entry.json", "entry.json.gz"])
@pytest.mark.parametrize("seed", range(20))
def test_any_damage_is_put_aside_and_said_once(tmp_path: Path, name: str, seed: int) -> None:
    entry = JsonEntry(tmp_path / name, "things")
    entry.write(CONTENT)
    chance = random.Random(seed)
    data = bytearray(entry.path.read_bytes())
    start = chance.randrange(len(data))
    damaged = [data[:start], data[:start] + bytes([data[start] ^ 4]) + data[start + 1 :]][seed % 2]
    entry.path.write_bytes(damaged)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = entry.read(dict)
        assert entry.read(dict) == found
    if found is not None:  # a bit of gzip's header that means nothing
        assert found == CONTENT
        assert not caught
        return
    (said,) = caught
    assert str(said.message).startswith("cache: things: ")
    assert (tmp_path / f"{name}.damaged").read_bytes() == damaged
    entry.write(CONTENT)
    assert entry.read(dict) == CONTENT


def test_another_entry_under_this_name_is_not_believed(tmp_path: Path) -> None:
    one, other = (JsonEntry(tmp_path / name, "things") for name in ("1.json", "2.json"))
    other.write(CONTENT)
    other.path.rename(one.path)
    with pytest.warns(UserWarning, match="it is another entry, '2.json'"):
        assert one.read(dict) is None


def test_a_folder_in_its_place_is_put_aside_under_a_name_of_its_own(tmp_path: Path) -> None:
    entry = JsonEntry(tmp_path / "1.json", "things")
    for _ in range(2):
        entry.path.mkdir()
        with pytest.warns(UserWarning, match=r"Is a directory.*1.json.*computed anew"):
            assert entry.read(dict) is None
        assert not entry.path.exists()
    assert len(list(tmp_path.glob("1.json*.damaged"))) == 2


def test_what_another_process_has_written_meanwhile_stays(tmp_path: Path) -> None:
    entry = JsonEntry(tmp_path / "1.json", "things")
    entry.path.write_bytes(b"damaged")

    def read() -> None:
        entry.path.unlink()  # as the other process does
        entry.write(CONTENT)
        raise ValueError("damaged")

    assert read_kept(entry.path, "things", read) is None
    assert entry.read(dict) == CONTENT
    put_aside(tmp_path / "gone", "things", "damaged")  # nothing to put aside, nothing to say


def targets() -> dict[str, FinishedTarget]:
    return {
        key: FinishedTarget(torch.full((4,), float(n)), torch.zeros(4), 0.5 * n, n)
        for n, key in enumerate(["a" * 64, "b" * 64, "c" * 64], start=1)
    }


def read_targets(folder: Path, keys: list[str]) -> tuple[dict[int, FinishedTarget], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = TargetCache(folder).read(keys)
    return found, [str(each.message) for each in caught]


@pytest.mark.parametrize(
    "change",
    [
        "set loss = 9",
        "set n_steps = n_steps + 1",
        "set state = zeroblob(16)",
        "set state = zeroblob(15)",
        "set state = 'text'",
        "set initial = null",
        "set checksum = null",
        "set key = 'x' || key",
    ],
)
def test_rows_of_z_that_are_not_what_was_written_are_computed_anew(
    tmp_path: Path, change: str
) -> None:
    TargetCache(tmp_path).write(targets())
    keys = list(targets())
    with closing(sqlite3.connect(tmp_path / "target_hidden.sqlite")) as database, database:
        database.execute(f"update checked_target_hidden {change} where key = ?", keys[1:2])
    asked = ["x" + keys[1] if "key" in change and key == keys[1] else key for key in keys]
    found, said = read_targets(tmp_path, asked)
    assert sorted(found) == [0, 2]
    assert ["1 of 3 entries" in each for each in said] == [True]
    TargetCache(tmp_path).write({asked[1]: targets()[keys[1]]})
    found, said = read_targets(tmp_path, asked)
    assert sorted(found) == [0, 1, 2]
    assert not said


@pytest.mark.parametrize("content", [b"\0" * 8192, b"no database" * 100, "half", "folder"])
def test_a_file_of_z_that_is_no_database_is_put_aside(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "target_hidden.sqlite"
    TargetCache(tmp_path).write(targets())
    if content == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(path.read_bytes()[:5000] if content == "half" else bytes(content))
    found, said = read_targets(tmp_path, list(targets()))
    assert found == {}
    assert ["computed anew" in each for each in said] == [True]
    TargetCache(tmp_path).write(targets())
    found, said = read_targets(tmp_path, list(targets()))
    assert sorted(found) == [0, 1, 2]
    assert not said


def test_z_is_written_where_the_file_is_damaged_after_it_was_read(tmp_path: Path) -> None:
    (tmp_path / "target_hidden.sqlite").write_bytes(b"no database" * 100)
    with pytest.warns(UserWarning, match="file is not a database.*computed anew"):
        TargetCache(tmp_path).write(targets())
    assert sorted(read_targets(tmp_path, list(targets()))[0]) == [0, 1, 2]


@pytest.mark.parametrize("damage", ["half", "bit", "other", "bare"])
def test_damaged_second_moments_are_collected_anew(tmp_path: Path, damage: str) -> None:
    model = tiny_model()
    resources = Resources(seed=0, cache=tmp_path, corpus=toy_corpus())
    expected = obtain_second_moments(model, (1,), 500, resources)[1].clone()
    (path,) = tmp_path.glob("second_moments/*.safetensors")
    data = bytearray(path.read_bytes())
    if damage == "half":
        del data[len(data) // 2 :]
    elif damage == "bit":  # of a number on the diagonal, which no other number gives away
        data[-2] ^= 1
    elif damage == "bare":
        data = data.replace(b'\\"checksum\\"', b'\\"checksun\\"')
    else:
        obtain_second_moments(model, (1,), 600, resources)
        (other,) = set(path.parent.glob("*.safetensors")) - {path}
        data = bytearray(other.read_bytes())
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="cache: second moments: .*computed anew"):
        found = obtain_second_moments(model, (1,), 500, resources)[1]
    assert torch.equal(found, expected)
    assert path.with_name(f"{path.name}.damaged").read_bytes() == data
    assert torch.equal(obtain_second_moments(model, (1,), 500, resources)[1], expected)


def test_gzip_is_what_readers_of_answers_expect(tmp_path: Path) -> None:
    entry = JsonEntry(tmp_path / "1.json.gz", "things")
    entry.write(CONTENT)
    assert json.loads(gzip.decompress(entry.path.read_bytes()))["content"] == CONTENT
