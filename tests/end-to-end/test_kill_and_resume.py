"""A run killed with SIGKILL at any point and resumed gives the rows of an uninterrupted one."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.thorough


def read_rows(folder: Path) -> list[dict[str, Any]]:
    rows = [
        json.loads(line)
        for file in sorted(folder.glob("trials/*/rows.jsonl"))
        for line in file.read_text().splitlines()
    ]
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


def test_kill_at_any_point(editbench, start, report, tmp_path) -> None:
    options = [
        "run", "--n-edits", "3", "--n-edits", "6", "--seed", "0", "--seed", "1",
        "--set", "memit.second_moment_tokens=3000", "--metrics", "success,accuracy",
    ]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    editbench(*options, "--out", whole, "--cache", tmp_path / "cache-of-whole")
    duration = time.monotonic() - began

    chance = random.Random(0)
    options += ["--out", str(killed), "--cache", str(tmp_path / "cache-of-killed")]

    def resume() -> list[str]:
        return ["--resume"] if (killed / "run.json").exists() else []

    for _ in range(3):
        with start(*options, *resume()) as run:
            time.sleep(chance.uniform(0.2, 0.9) * duration)
            run.send_signal(signal.SIGKILL)
    editbench(*options, *resume())

    assert read_rows(killed) == read_rows(whole)
    assert report(killed) == report(whole)
    assert not [path for path in killed.rglob("*") if "unfinished" in path.name]
