"""A grid on a Ray cluster that everything happens to: it ends with the rows of a quiet run."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra editbench[ray]")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]

PATIENCE = 120.0  # seconds; a machine with other things to do starts workers slowly
QUICK = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0"}
PROGRAM = [sys.executable, "-m", "editbench.cli"]
PAGE = 4096  # bytes
NO_SPACE = re.compile("No space left on device|disk is full")  # the system's words, and SQLite's

# A file system of $1 bytes at $2, which only what runs in here sees. It begins with what is in
# folder $3, and that folder ends with what was on it.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=$1 small "$2" && cp -a "$3/." "$2" || exit 99
disk=$2 kept=$3
shift 3
"$@"
status=$?
rm -r "$kept" && cp -a "$disk" "$kept" || exit 98
exit $status
"""


def can_mount() -> bool:
    """Whether this user may mount file systems that nobody else sees."""
    try:
        script = ["unshare", "-rm", "mount", "-t", "tmpfs", "small", "/mnt"]
        return subprocess.run(script, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The installed program, left to itself for the length of a block."""
    with subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **QUICK},
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
    """The rows of stored trials; one that is being written has a dot before its name."""
    return {
        path.parent.name: path.read_text().splitlines()
        for path in sorted(folder.glob("trials/[!.]*/rows.jsonl"))
    }


def size_of(folder: Path) -> int:
    """Bytes that a folder takes of a disk, on which files have whole pages."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(-(-size // PAGE) * PAGE for size in sizes)


def run_on_a_full_disk(
    kept: Path, n_free: int, options: Sequence[object]
) -> subprocess.CompletedProcess[str]:
    """Resume a run on a real file system that has room for so many bytes besides what is kept."""
    disk = kept.with_name("disk")
    disk.mkdir(exist_ok=True)
    resume = [*options, "--out", disk / "run", "--cache", disk / "cache", "--resume"]
    script = ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, "sh"]
    return subprocess.run(
        [*script, *map(str, [size_of(kept) + n_free, disk, kept, *PROGRAM, *resume])],
        env={**os.environ, **QUICK},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def run_with_small_files(
    kept: Path, n_bytes: int, options: Sequence[object]
) -> subprocess.CompletedProcess[str]:
    """Resume a run in which no file may grow larger: what a user can have without a disk.

    To a program it is much the same: writing fails in the middle of a file. But the limit would end
    Ray's processes too, which write logs, and no second moments fit, so there is no cache.
    """
    resume = [*options, "--out", kept / "run", "--no-cache", "--resume"]
    return subprocess.run(
        [*PROGRAM, *map(str, resume)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes)),
        env={**os.environ, **QUICK},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def check_what_is_kept(folder: Path, whole: Path, before: dict[str, list[str]]) -> None:
    """Every trial that is there is as it should be, or says whole that it failed."""
    kept, expected = contents_of(folder), contents_of(whole)
    for trial, rows in kept.items():
        if rows != expected[trial]:
            (row,) = map(json.loads, rows)
            assert row["status"] == "error"
            assert NO_SPACE.search(row["message"])
    assert {trial: kept[trial] for trial in before} == before


@pytest.mark.timeout(600)  # a dozen processes that import torch
def test_workers_and_driver_killed_and_the_disk_full(editbench, tmp_path) -> None:
    options = [
        "run", "--n-edits", 2, "--n-edits", 4, "--metrics", "success,accuracy", "--quiet",
        "--set", "memit.second_moment_tokens=3000", "--set", "memit.n_steps=8",
    ]  # fmt: skip
    whole, shaken = tmp_path / "whole", tmp_path / "shaken"
    editbench(*options, "--out", whole / "run", "--cache", whole / "cache")
    expected = contents_of(whole / "run")
    assert len(expected) == 4
    on_ray = ["--executor", "ray", "--trial-cpus", 1]
    to_shaken = ["--out", shaken / "run", "--cache", shaken / "cache"]

    # A worker dies, and then the process that has the plan, with a trial or two finished.
    with running(*options, *on_ray, "--out", shaken / "run", "--no-cache") as run:
        kill_a_worker_of(run)
        wait_for(lambda: contents_of(shaken / "run") or run.poll() is not None)
        cluster = descendants_of(run.pid)
        run.send_signal(signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, cluster)))  # it takes its cluster with it
    finished = contents_of(shaken / "run")
    assert 1 <= len(finished) < 4

    if can_mount():
        # The disk has room for second moments, but not for the target hidden states as well.
        moments = size_of(whole / "cache" / "second_moments")
        before_these = size_of(whole / "cache" / "answers") + sum(
            size_of(whole / "run" / "trials" / trial)
            for trial, rows in expected.items()
            if trial not in finished and json.loads(rows[0])["editor"] == "unedited"
        )
        n_free = before_these + moments + 2 * PAGE
        full = run_on_a_full_disk(shaken, n_free, [*options, *on_ray])
        assert full.returncode in (1, 2), full.stderr
        assert NO_SPACE.search(full.stdout + full.stderr)
        check_what_is_kept(shaken / "run", whole / "run", finished)
        assert size_of(shaken / "cache" / "second_moments") == moments
        databases = [(each / "cache" / "target_hidden.sqlite") for each in (whole, shaken)]
        assert databases[1].stat().st_size < databases[0].stat().st_size
    else:
        # The disk has room for the rows of two edits, but not for those of four.
        n_bytes = max(len("\n".join(rows)) for rows in expected.values())
        full = run_with_small_files(shaken, n_bytes // 2 + 500, options)
        assert full.returncode == 2, full.stderr
        assert "Everything finished before is kept: make room" in full.stderr
        assert len(finished) <= len(contents_of(shaken / "run")) < 4

    # There is room again, but another worker dies; the run goes on to the end.
    with running(*options, *on_ray, *to_shaken, "--resume") as run:
        kill_a_worker_of(run)
        assert run.wait(timeout=PATIENCE) == 0, run.stderr.read()[-3000:]
    assert contents_of(shaken / "run") == expected
    leftovers = ("partial", "unfinished", "tmp")
    found = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in found if any(each in name for each in leftovers)]
