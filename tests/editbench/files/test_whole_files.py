import os
import time
from pathlib import Path

import pytest

from editbench.files.whole_files import write_whole, writing_whole, writing_whole_folder

HEX = "0123456789abcdef" * 2
DAY = 24 * 3600


def leave(path: Path, age: float) -> Path:
    path.write_text("left")
    written = time.time() - age
    os.utime(path, (written, written))
    return path


def test_a_file_appears_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with writing_whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert partial.parent == tmp_path
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with writing_whole(path) as partial:
            partial.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    with pytest.raises(FileNotFoundError), writing_whole(path):
        pass
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_at_the_same_time_do_not_touch_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with writing_whole(path) as first:
        first.write_text("first")
        with writing_whole(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
        assert first.read_text() == "first"
    assert path.read_text() == "first"


def test_a_folder_appears_whole_and_alone(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "folder"
    for content in ("old", "new"):
        with writing_whole_folder(folder) as unfinished:
            write_whole(unfinished / content, content)
            assert [path.name for path in folder.glob("*")] == (["old"] if content == "new" else [])
    assert [path.name for path in folder.iterdir()] == ["new"]
    with pytest.raises(KeyboardInterrupt), writing_whole_folder(folder) as unfinished:
        raise KeyboardInterrupt
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(folder.parent.iterdir()) == [folder]


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path: Path) -> None:
    own = leave(tmp_path / f".unfinished-moments.safetensors-{HEX}", 1.1 * DAY)
    other = leave(tmp_path / f".unfinished-other.safetensors-{HEX}", 1.1 * DAY)
    kept = [
        leave(tmp_path / f".unfinished-young.safetensors-{HEX}", 0.9 * DAY),  # may be being written
        leave(tmp_path / ".unfinished-notes", 9 * DAY),
        leave(tmp_path / f"moments-{HEX}", 9 * DAY),
        leave(tmp_path / "moments.safetensors.partial", 9 * DAY),  # what a collection goes on from
    ]
    path = tmp_path / "moments.safetensors"
    write_whole(path, "moments")
    assert not own.exists()
    assert not other.exists()
    assert sorted(tmp_path.iterdir()) == sorted([*kept, path])
