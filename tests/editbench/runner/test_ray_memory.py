"""A task that its machine has no memory for: it ends, where Ray by itself would try for ever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra editbench[ray]")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(sys.platform != "linux", reason="Ray watches memory on Linux"),
]

N_RETRIES = 1
TASK = f"""
import pathlib, sys, time
import ray
from editbench.runner.on_ray.cluster import connected

def take_too_much(attempts):
    with open(attempts, "a") as file:
        file.write("x")
    time.sleep(60)

with connected(None, n_retries={N_RETRIES}):
    task = ray.remote(take_too_much).options(num_cpus=1, max_retries={N_RETRIES})
    try:
        ray.get(task.remote(sys.argv[1]), timeout=60)
    except ray.exceptions.RayError as error:
        print(type(error).__name__)
"""


@pytest.mark.timeout(180)
def test_a_task_that_memory_does_not_suffice_for_is_tried_a_few_times_more(tmp_path: Path) -> None:
    attempts = tmp_path / "attempts"
    attempts.touch()
    # To the monitor, all machines are full; it looks once a second, so that the task has begun.
    monitor = {
        "RAY_memory_usage_threshold": "0.001",
        "RAY_memory_monitor_refresh_ms": "1000",
        "RAY_task_oom_retry_delay_base_ms": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", TASK, attempts],
        env={**os.environ, **monitor, "RAY_worker_niceness": "0"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert "OutOfMemoryError" in done.stdout, done.stderr[-3000:]
    # In a minute without a limit there are dozens. One that dies at once leaves no mark.
    assert len(attempts.read_text()) <= 1 + N_RETRIES
