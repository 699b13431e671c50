"""The cluster: joining one, or starting one."""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from editbench.errors import RunError

_PATIENCE = 10.0  # seconds

# On Linux, Ray takes 127.0.0.1 to mean the machine's address in its network.
_LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"


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
