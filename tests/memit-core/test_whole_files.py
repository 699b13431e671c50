import os
import time
from pathlib import Path

import pytest
import torch

from memit_core import SecondMoment, save_second_moments
from memit_core.whole_files import writing_whole

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


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path: Path) -> None:
    own = leave(tmp_path / f".moments.safetensors.{HEX}.partial", 1.1 * DAY)
    other = leave(tmp_path / f".other.safetensors.{HEX}.partial", 1.1 * DAY)
    kept = [
        leave(tmp_path / f".young.safetensors.{HEX}.partial", 0.9 * DAY),  # may be being written
        leave(tmp_path / ".notes.partial", 9 * DAY),
        leave(tmp_path / f"moments.{HEX}.partial", 9 * DAY),
        leave(tmp_path / "moments.safetensors.partial", 9 * DAY),  # what a collection goes on from
    ]
    path = tmp_path / "moments.safetensors"
    save_second_moments(path, {0: SecondMoment.from_moment(torch.eye(3), n_tokens=1)}, {})
    assert not own.exists()
    assert not other.exists()
    assert sorted(tmp_path.iterdir()) == sorted([*kept, path])
