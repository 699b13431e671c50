"""How much main memory is left: of the machine, and of the container that the process is in."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class _Files:
    """What a version of control groups calls its numbers.

    Attributes:
        limit: Bytes that the group may take, or 'max'.
        used: Bytes that it takes, cached files included.
        inactive: The line of ``memory.stat`` with the cached files, of the groups below it too,
            that the kernel drops before it refuses memory.
    """

    limit: str
    used: str
    inactive: str


_VERSION_1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Files("memory.max", "memory.current", "inactive_file")


def free_on_host(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Bytes of main memory that this process can still allocate without swapping.

    That is what the machine has available, or less where a limit of the process' control group or
    of a group above it leaves less: beyond such a limit the kernel kills, however much memory the
    machine has.

    Args:
        proc: Where the kernel tells of processes.
        cgroups: Where control groups are mounted.
    """
    return min(_available(proc), *_left_in_groups(proc, cgroups), 2**63)


def _available(proc: Path) -> int:
    for line in _read(proc / "meminfo").splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return int(amount.split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _left_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What each limit leaves that the process is under."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        hierarchy, controllers, group = line.split(":", 2)
        if hierarchy == "0":
            root, files = cgroups, _VERSION_2
        elif "memory" in controllers.split(","):
            root, files = cgroups / "memory", _VERSION_1
        else:
            continue
        # A container may see its own group as the root, whatever path the kernel tells: levels that
        # it does not see have no files here, and the root's are tried as well.
        relative = PurePosixPath(group.lstrip("/"))
        for level in (relative, *relative.parents):
            left = _left_in_group(root / level, files)
            if left is not None:
                yield left


def _left_in_group(folder: Path, files: _Files) -> int | None:
    """What a group's limit leaves; None if it has none."""
    limit, used = _read(folder / files.limit).strip(), _read(folder / files.used).strip()
    if not (limit.isdecimal() and used.isdecimal()):
        return None
    inactive = 0
    for line in _read(folder / "memory.stat").splitlines():
        name, _, amount = line.partition(" ")
        if name == files.inactive:
            inactive = int(amount)
    return max(0, int(limit) - max(0, int(used) - inactive))


def _read(path: Path) -> str:
    """A file of the kernel's; empty where there is none, or none any more."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
