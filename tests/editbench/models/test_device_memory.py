"""How much main memory is left, read from what the kernel would say."""

from pathlib import Path

import pytest

from editbench.models.device_memory import free_on_host

GIB = 2**30


@pytest.fixture
def write(tmp_path: Path):
    """Writes files below an empty folder, by path."""

    def write_files(files: dict[str, object]) -> None:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")

    write_files({"proc/meminfo": f"MemTotal: 64 kB\nMemAvailable: {20 * GIB // 1024} kB"})
    return write_files


@pytest.fixture
def free(tmp_path: Path):
    return lambda: free_on_host(tmp_path / "proc", tmp_path / "groups") / GIB


def second(path: str, limit: object, used: float, inactive: float = 0) -> dict[str, object]:
    """The files of a group of version 2, in GiB."""
    stat = f"anon 5\ninactive_file {int(inactive * GIB)}\nactive_file 7"
    written = limit if isinstance(limit, str) else int(limit * GIB)
    return {
        f"groups{path}/memory.max": written,
        f"groups{path}/memory.current": int(used * GIB),
        f"groups{path}/memory.stat": stat,
    }


def first(path: str, limit: float, used: float, inactive: float = 0) -> dict[str, object]:
    """The files of a group of version 1, in GiB; dropped files are those below it, too."""
    return {
        f"groups/memory{path}/memory.limit_in_bytes": int(limit * GIB),
        f"groups/memory{path}/memory.usage_in_bytes": int(used * GIB),
        f"groups/memory{path}/memory.stat": (
            f"inactive_file 0\ntotal_inactive_file {int(inactive * GIB)}"
        ),
    }


def test_without_groups_it_is_what_the_machine_has(write, free) -> None:
    assert free() == 20
    write({"proc/self/cgroup": "0::/"})
    assert free() == 20


def test_files_that_can_be_dropped_are_free(write, free) -> None:
    write({"proc/self/cgroup": "0::/job", **second("/job", 8, used=5, inactive=2)})
    assert free() == 5


@pytest.mark.parametrize(
    ("own", "parent", "expected"),
    [(8, 10, 2), ("max", 10, 3), (8, "max", 2), ("max", "max", 20), (30, 40, 20)],
)
def test_the_tightest_limit_counts(write, free, own, parent, expected) -> None:
    groups = {**second("/pod/job", own, used=6), **second("/pod", parent, used=7)}
    write({"proc/self/cgroup": "0::/pod/job", **groups})
    assert free() == expected


def test_a_full_group_has_nothing_left(write, free) -> None:
    write({"proc/self/cgroup": "0::/job", **second("/job", 8, used=8.5)})
    assert free() == 0


def test_a_container_sees_its_group_as_the_root(write, free) -> None:
    write({"proc/self/cgroup": "0::/docker/abc", **second("", 4, used=1)})
    assert free() == 3


def test_version_1(write, free) -> None:
    hierarchies = "11:cpu,cpuacct:/cpu\n4:hugetlb,memory:/pod/job\n1:name=systemd:/pod\n0::/pod"
    groups = {**first("/pod/job", 8, used=6, inactive=1), **first("/pod", 6, used=5)}
    write({"proc/self/cgroup": hierarchies, **groups, **first("", 2**33 - 1, used=5)})
    assert free() == 1


def test_a_machine_that_says_nothing_counts_as_half_free(tmp_path: Path) -> None:
    found = free_on_host(tmp_path / "proc", tmp_path / "groups")
    assert found > 2**20
    assert found < free_on_host() * 1_000
