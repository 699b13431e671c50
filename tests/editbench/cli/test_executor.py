"""Who runs the trials, as the command line says it; trials on Ray itself: runner/test_on_ray.py."""

import socket
import sys

import pytest


@pytest.mark.parametrize("command", [["run"], ["reproduce", "lambda", "--out", "out"]])
@pytest.mark.parametrize(
    ("option", "value", "got"),
    [
        ("--address", "auto", "'auto'"),
        ("--trial-cpus", "2", "2"),
        ("--trial-gpus", "0.5", "0.5"),
        ("--trial-memory", "8", "8.0"),
    ],
)
def test_options_of_a_cluster_need_one(refuses, command, option, value, got):
    refuses(
        *command,
        option,
        value,
        says=f"{option}: only for trials on a Ray cluster, got {got} with the executor 'local'",
    )


def test_an_executor_that_is_not_known_or_needs_nonsense(refuses):
    refuses("run", "--executor", "slurm", says="'slurm' is not one of 'local', 'ray'")
    refuses("run", "--executor", "ray", "--trial-cpus", "0", says="--trial-cpus")


def test_without_ray_it_says_how_to_get_it(refuses, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    refuses("run", "--executor", "ray", says="pip install 'editbench[ray]'")


def test_a_cluster_that_is_not_there(refuses):
    pytest.importorskip("ray", reason="needs the extra editbench[ray]")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = f"127.0.0.1:{port}"  # nobody listens there any more
    refuses(
        "run",
        "--executor",
        "ray",
        "--address",
        address,
        says=f"executor 'ray': cannot use the cluster, got '{address}'",
    )
