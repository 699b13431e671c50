"""How much memory is left: of a device, of the machine, and of the container of the process."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import nn

GIB = 2**30

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def is_present(device: torch.device) -> bool:
    """Whether this machine has a device, so that its memory and speed can be known."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        return False
    return True


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device that is present; on the CPU, without swapping.

    What torch has reserved and does not use counts as free.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_on_host()


def allocated_memory(device: torch.device) -> int | None:
    """Bytes that this process' tensors take of a device; None where nobody counts them.

    On the CPU nobody does: what a process holds of main memory is also its libraries, files that it
    has read, and what was given back and kept for later.
    """
    if device.type == "cuda" and is_present(device):
        return torch.cuda.memory_allocated(device)
    return None


def working_device(module: nn.Module) -> torch.device | None:
    """Where a module computes with weights of its own; None if it has none.

    That is where they are, or where accelerate brings them at the moment of use.
    """
    parameter = next(module.parameters(recurse=False), None)
    if parameter is None:
        return None
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", [hook]):  # one hook, or a list of them in one
        if (device := getattr(each, "execution_device", None)) is not None:
            return torch.device(device)
    return parameter.device


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
