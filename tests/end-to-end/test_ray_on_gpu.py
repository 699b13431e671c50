"""A grid whose trials share a GPU on a Ray cluster: the rows of a run with the GPU to itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ray", reason="needs the extra editbench[ray]")

OPTIONS = [
    "run", "--n-edits", 2, "--n-edits", 4, "--metrics", "success,accuracy", "--quiet",
    "--set", "memit.second_moment_tokens=3000", "--set", "memit.n_steps=8",
]  # fmt: skip


def rows_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("trials/*/rows.jsonl"))
    }


@pytest.mark.gpu
@pytest.mark.timeout(600)  # workers import torch and start CUDA
@pytest.mark.parametrize("trial_gpus", [1, 0.5])
def test_trials_on_a_gpu(editbench, tmp_path: Path, trial_gpus: float) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    editbench(*OPTIONS, "--out", here, "--cache", tmp_path / "cache-here", "--device", "cuda")
    # The process that has the plan needs no GPU: the model moves to the worker's.
    on_workers = ["--executor", "ray", "--trial-cpus", 1, "--trial-gpus", trial_gpus]
    editbench(
        *OPTIONS, "--out", there, "--cache", tmp_path / "cache-there", "--device", "cpu",
        *on_workers,
    )  # fmt: skip
    found, expected = rows_of(there), rows_of(here)
    assert found.keys() == expected.keys()
    assert len(found) == 4
    n_gpu_bytes = torch.cuda.get_device_properties(0).total_memory
    for trial, rows in expected.items():
        assert {row["status"] for row in rows} == {"ok"}
        assert found[trial] == rows
        record = json.loads((there / "trials" / trial / "trial.json").read_text())
        assert 0 < record["peak_memory_bytes"]["device"] <= trial_gpus * n_gpu_bytes
