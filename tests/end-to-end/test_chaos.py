"""A grid on a Ray cluster that everything happens to: it ends with the rows of a quiet run."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra editbench[ray]")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

PATIENCE = 120.0  # seconds; a machine with other things to do starts workers slowly


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The installed program, left to itself for the length of a block."""
    quick = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0"}
    with subprocess.Popen(
        [sys.executable, "-m", "editbench.cli", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **quick},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def descendants_of(process: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue  # it has ended meanwhile
            state, parent = stat.rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found = [process]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found[1:]


def workers_of(process: int) -> list[int]:
    """Processes that are at work on a task."""
    found = []
    for pid in descendants_of(process):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::") and b"atlas" in title:  # a trial, or answers for one
            found.append(pid)
    return found


def kill_a_worker_of(process: subprocess.Popen[str]) -> None:
    found: list[int] = []

    def look() -> bool:
        found.extend(workers_of(process.pid))
        return bool(found) or process.poll() is not None

    wait_for(look)
    assert found, process.stderr.read()[-3000:]
    os.kill(found[0], signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def contents_of(folder: Path) -> dict[str, list[str]]:
    return {
        path.parent.name: path.read_text().splitlines()
        for path in sorted(folder.glob("trials/*/rows.jsonl"))
    }


@pytest.mark.timeout(600)  # a dozen processes that import torch
def test_workers_and_driver_killed_and_the_disk_full(editbench, tmp_path) -> None:
    options = [
        "run", "--n-edits", 2, "--n-edits", 4, "--metrics", "success,accuracy", "--quiet",
        "--set", "memit.second_moment_tokens=3000", "--set", "memit.n_steps=8",
    ]  # fmt: skip
    whole, shaken = tmp_path / "whole", tmp_path / "shaken"
    editbench(*options, "--out", whole, "--cache", tmp_path / "cache-of-whole")
    assert len(contents_of(whole)) == 4
    options += ["--out", shaken, "--cache", tmp_path / "cache-of-shaken"]
    on_ray = [*options, "--executor", "ray", "--trial-cpus", 1]

    # A worker dies, and then the process that has the plan, with a trial or two finished.
    with running(*on_ray) as run:
        kill_a_worker_of(run)
        wait_for(lambda: contents_of(shaken) or run.poll() is not None)
        cluster = descendants_of(run.pid)
        run.send_signal(signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, cluster)))  # it takes its cluster with it
    n_kept = len(contents_of(shaken))
    assert 1 <= n_kept < 4

    # The disk has room for the rows of two edits, but not for those of four.
    n_bytes = max(len("\n".join(rows)) for rows in contents_of(whole).values())
    full = subprocess.run(
        [sys.executable, "-m", "editbench.cli", *map(str, options), "--resume", "--no-cache"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes // 2 + 500,) * 2),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert full.returncode == 2, full.stderr
    assert "Everything finished before is kept: make room" in full.stderr
    assert n_kept <= len(contents_of(shaken)) < 4

    # Another worker dies, with everything to be computed anew; the run goes on to the end.
    with running(*on_ray, "--resume", "--no-cache") as run:
        kill_a_worker_of(run)
        assert run.wait(timeout=PATIENCE) == 0, run.stderr.read()[-3000:]
    assert contents_of(shaken) == contents_of(whole)
    leftovers = ("partial", "unfinished", "tmp")
    found = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in found if any(each in name for each in leftovers)]
