"""The cluster: joining one or starting one, and what a task asks of it."""

import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from editbench.errors import RunError
from editbench.models.editable import EditableModel

_GIBIBYTE = 2**30
_PATIENCE = 10.0  # seconds

# On Linux, Ray takes 127.0.0.1 to mean the machine's address in its network.
_LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"


@dataclass(frozen=True)
class TaskNeeds:
    """What Ray sets aside for a task; None chooses by model and machine.

    Attributes:
        cpus: Processor cores, which are torch's threads as well.
        gpus: GPUs; a task that has one, or a part of one, computes there.
        memory: GiB of main memory.
    """

    cpus: int | None = None
    gpus: float | None = None
    memory: float | None = None

    def settle(self, model: EditableModel, nodes: "Sequence[Resources]") -> dict[str, float]:
        """Choose what is left open, for trials on a model.

        As many cores as torch has threads here, if a machine has so many; one GPU if the model is
        on one here; and memory for two copies of the weights and a gibibyte besides.

        Returns:
            Options of a Ray task.
        """
        n_bytes = sum(p.numel() * p.element_size() for p in model.model.parameters())
        most_cpus = max((int(node.get("CPU", 0)) for node in nodes), default=1)
        on_gpu = model.device.type == "cuda"
        return {
            "num_cpus": self.cpus or max(1, min(torch.get_num_threads(), most_cpus)),
            "num_gpus": float(on_gpu) if self.gpus is None else self.gpus,
            "memory": 2 * n_bytes + _GIBIBYTE
            if self.memory is None
            else round(self.memory * _GIBIBYTE),
        }


Resources = Mapping[str, float]
"""What a machine has, by Ray's names."""


def list_nodes() -> list[Resources]:
    """The machines of the cluster that is joined."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def count_places(options: Mapping[str, float], nodes: Sequence[Resources]) -> int:
    """How many tasks find what they need at once, where nothing else is done."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    wanted = {names[option]: amount for option, amount in options.items() if amount > 0}
    return sum(
        int(min(node.get(name, 0) / amount for name, amount in wanted.items())) for node in nodes
    )


def name_needs(options: Mapping[str, float]) -> str:
    """What a message calls the needs of a task."""
    return (
        f"{options['num_cpus']:g} cores, {options['num_gpus']:g} GPUs and "
        f"{options['memory'] / _GIBIBYTE:.1f} GiB"
    )


def check_reachable(address: str) -> None:
    """Refuse an address where nobody answers, for which Ray would wait several minutes.

    Raises:
        RunError: The address names a host and port, and there is nobody.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # a word such as 'auto', which Ray itself looks up
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise _unusable(address, error) from error


@contextmanager
def connected(address: str | None, n_retries: int) -> Iterator[None]:
    """Join a cluster, or start one on the loopback address, for the length of a block.

    A connection that the caller has made is used, and left as it is.

    Args:
        address: Of a running cluster; None starts one.
        n_retries: How often a task is tried again that a machine's memory monitor has ended. Ray
            counts these apart from other deaths, and by itself tries for ever.

    Raises:
        RunError: There is no such cluster, or none can be started.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    # The process that sends a task counts its deaths, also on a cluster that others have started.
    variables = {"RAY_task_oom_retries": str(n_retries)}
    try:
        if address is not None:
            with _environment(variables):
                ray.init(address, **quietly)
        else:  # a cluster of our own reports to nobody
            with _environment({**variables, "RAY_USAGE_STATS_ENABLED": "0"}):
                ray.init("local", include_dashboard=False, _node_ip_address=_LOOPBACK, **quietly)
    except (ray.exceptions.RayError, RuntimeError, ValueError, OSError) as error:
        raise _unusable(address or "a new one", error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _unusable(address: str, error: Exception) -> RunError:
    reason = " ".join(str(error).split())[:300]
    return RunError(
        f"executor 'ray': cannot use the cluster, got {address!r} ({reason}). Start one with "
        "'ray start --head', check --address and the token (RAY_AUTH_MODE=token), or use "
        "--executor local."
    )


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the length of a block, but for those that the user has set."""
    missing = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]
