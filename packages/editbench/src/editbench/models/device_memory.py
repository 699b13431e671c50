"""How much memory a device has left."""

import torch
from torch import nn

from editbench.models.host_memory import free_on_host

GIB = 2**30


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
