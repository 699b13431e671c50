"""The installed program, as a user runs it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Editbench = Callable[..., subprocess.CompletedProcess[str]]


PROGRAM = [sys.executable, "-m", "editbench.cli"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def editbench() -> Editbench:
    """Run the program; fails the test if the exit code is not the expected one."""

    def run(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*PROGRAM, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            timeout=280,
            check=False,
        )
        assert done.returncode == expect, done.stderr[-3000:]
        return done

    return run


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[bytes]]:
    """Start the program and let it run; the caller ends it."""

    def begin(*arguments: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*PROGRAM, *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )

    return begin


@pytest.fixture
def report(editbench: Editbench) -> Callable[[Path], dict[tuple[str, str], dict[str, Any]]]:
    """The JSON report of a run folder, by editor and metric."""

    def read(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
        content = json.loads(editbench("report", folder, "--format", "json").stdout)
        return {(entry["editor"], entry["metric"]): entry for entry in content}

    return read


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for all end-to-end tests: second moments need collecting once."""
    return tmp_path_factory.mktemp("cache")
