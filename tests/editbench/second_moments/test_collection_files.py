"""Waiting for others that collect the same."""

import threading
import time
import warnings
from pathlib import Path

import pytest
from filelock import FileLock

from editbench.editors.base import Resources
from editbench.second_moments import collection_files
from editbench.second_moments.collection_files import alone
from editbench.second_moments.obtaining import cached_path, obtain_second_moments
from editbench.testing import tiny_model, toy_corpus


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection_files, "_SAY_AFTER_SECONDS", 0.01)


@pytest.mark.usefixtures("at_once")
def test_who_is_waited_for_is_said(tmp_path: Path) -> None:
    model, corpus = tiny_model(), toy_corpus()
    path = cached_path(tmp_path, model, corpus, (1,), 500)
    path.parent.mkdir(parents=True)
    other = FileLock(f"{path}.lock", thread_local=False)
    other.acquire()
    said: list[str] = []

    def note_and_let_go(stage: str, done: int, total: int, note: str = "") -> None:
        said.append(f"{stage}: {note}")
        other.release()  # the other process is done

    resources = Resources(seed=0, cache=tmp_path, corpus=corpus, report_progress=note_and_let_go)
    assert list(obtain_second_moments(model, (1,), 500, resources)) == [1]
    assert said[0] == (f"second moments: waiting for another process, which holds {path}.lock")


@pytest.mark.usefixtures("at_once")
def test_where_there_is_no_progress_to_report_it_is_warned_about(tmp_path: Path) -> None:
    path = tmp_path / "factor"
    is_held = threading.Event()

    def hold() -> None:
        with FileLock(f"{path}.lock"):
            is_held.set()
            time.sleep(0.3)

    other = threading.Thread(target=hold)
    other.start()
    is_held.wait()
    with pytest.warns(UserWarning, match=r"waiting for .* holds .*factor\.lock"), alone(path):
        other.join()


def test_nothing_is_said_where_nobody_is_waited_for(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="error"), alone(tmp_path / "file"):
        pass
