import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from editbench.edits.weight_edit import WeightEdit
from editbench.errors import EditError

NAME = "transformer.h.0.mlp.c_proj.weight"
CARD = {
    "model_name": "m",
    "model_fingerprint": "f",
    "editor": "e",
    "requests_hash": "h",
    "n_edits": 1,
}


def write(path: Path, tensors: dict[str, torch.Tensor], card: object = CARD) -> Path:
    save_file(tensors, path, metadata={"editbench": json.dumps(card)})
    return path


@pytest.mark.parametrize(("rank", "suffixes"), [(2, ("left", "right")), (24, ("dense",))])
def test_the_format_is_the_documented_one(gpt2, make_edit, tmp_path, rank, suffixes):
    path = tmp_path / "edit.safetensors"
    make_edit(gpt2, rank=rank).save(path)
    tensors = load_file(path)
    shapes = {"left": (24, rank), "right": (96, rank), "dense": (24, 96)}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        f"{NAME}.{suffix}": shapes[suffix] for suffix in suffixes
    }
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["editbench"])
    assert card["model_fingerprint"] == gpt2.fingerprint
    assert card["extra"]["note"] == "für die Akten"


def test_what_a_killed_process_left_is_removed_a_day_later(gpt2, make_edit, tmp_path):
    left = tmp_path / f".unfinished-edit.safetensors-{'0' * 32}"
    left.write_text("left")
    os.utime(left, (time.time() - 1e5,) * 2)
    path = tmp_path / "edit.safetensors"
    make_edit(gpt2, rank=2).save(path)
    assert list(tmp_path.iterdir()) == [path]


def test_other_programs_may_write_other_precisions_and_more_card_fields(tmp_path):
    left, right = torch.ones(4, 1, dtype=torch.float16), torch.ones(6, 1, dtype=torch.float64)
    card = {**CARD, "license": "MIT"}
    path = write(tmp_path / "e", {f"{NAME}.left": left, f"{NAME}.right": right}, card)
    edit = WeightEdit.load(path)
    assert edit.updates[NAME].left.dtype == torch.float64
    assert edit.card.editor == "e"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{NAME}.left": torch.ones(4, 1)}, "incomplete or ambiguous, got left"),
        (
            {f"{NAME}.{part}": torch.ones(4, 1) for part in ("left", "right", "dense")},
            "incomplete or ambiguous, got dense, left, right",
        ),
        ({f"{NAME}.left": torch.ones(4, 1), f"{NAME}.right": torch.ones(4, 2)}, "do not fit each"),
        ({f"{NAME}.left": torch.ones(4), f"{NAME}.right": torch.ones(4)}, "do not fit each"),
        ({NAME: torch.ones(4)}, f"unknown tensor.*'{NAME}'"),
        ({"dense": torch.ones(4)}, "unknown tensor.*'dense'"),
        ({f"{NAME}.dense": torch.tensor([float("nan")])}, "finite floating-point"),
        ({f"{NAME}.dense": torch.ones(3, dtype=torch.int64)}, "finite floating-point"),
    ],
)
def test_malformed_updates_are_refused_by_the_name_of_the_file(tmp_path, tensors, message):
    path = write(tmp_path / "bad.safetensors", tensors)
    with pytest.raises(EditError, match=message) as error:
        WeightEdit.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({**CARD, "n_edits": -1}, "field 'n_edits'"),
        ({"editor": "e"}, "field 'model_name'"),
        ([], "must be a JSON object"),
    ],
)
def test_a_malformed_card_is_refused(tmp_path, card, message):
    path = write(tmp_path / "bad.safetensors", {}, card)
    with pytest.raises(EditError, match=message):
        WeightEdit.load(path)


def test_files_that_are_no_edit_are_refused(gpt2, make_edit, tmp_path):
    good = tmp_path / "good"
    make_edit(gpt2).save(good)
    truncated = tmp_path / "truncated"
    truncated.write_bytes(good.read_bytes()[:-10])
    text = tmp_path / "text"
    text.write_text("hello, this is not safetensors")
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    weights = tmp_path / "weights"
    save_file({"a": torch.ones(1)}, weights)
    for path in (truncated, text, empty, weights, tmp_path / "missing", tmp_path):
        with pytest.raises(EditError, match="load edit: ") as error:
            WeightEdit.load(path)
        assert str(path) in str(error.value)


def test_an_existing_file_is_replaced_whole(gpt2, make_edit, tmp_path):
    path = tmp_path / "edit"
    path.write_text("old")
    make_edit(gpt2).save(path)
    assert WeightEdit.load(path).card.editor == "random"


def test_a_folder_that_is_not_there_is_an_error(gpt2, make_edit, tmp_path):
    with pytest.raises(EditError, match="cannot write the file"):
        make_edit(gpt2).save(tmp_path / "nowhere" / "edit")


def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(tmp_path):
    """A limit on the size of files, in a process of its own, stands in for the full disk."""
    path = tmp_path / "edit"
    path.write_text("old")
    script = f"""
import resource, sys, torch
from pathlib import Path
from editbench.edits.card import EditCard
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import EditError
card = EditCard(model_name="m", model_fingerprint="f", editor="e", requests_hash="h", n_edits=1)
edit = WeightEdit({{"w": torch.ones(100, 100)}}, card)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    edit.save(Path({str(path)!r}))
except EditError as error:
    sys.exit(0 if "cannot write" in str(error) else str(error))
sys.exit("was written")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
