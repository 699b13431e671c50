"""``cache`` and ``doctor``: what lies around, and what is missing."""

import os
import time

import pytest

from editbench.cli import doctor as doctor_module


@pytest.fixture
def kept(tmp_path):
    """A cache with three kinds of things in it, one of them old."""
    folder = tmp_path / "cache"
    for name, size in (
        ("target_hidden.sqlite", 1500),
        ("answers/a.json.gz", 20),
        ("answers/b.json.gz.damaged", 7),
        ("mend/net.safetensors", 3),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    os.utime(folder / "answers/a.json.gz", (time.time() - 40 * 86_400,) * 2)
    return folder


def test_the_cache_is_listed_by_kind(invoke, kept):
    result = invoke("cache")
    assert result.exit_code == 0, result.output
    rows = {
        line.split("\u2502")[1].strip(): line
        for line in result.stdout.splitlines()
        if "\u2502" in line
    }
    assert list(rows) == ["targets", "answers", "mend", "damaged"]
    assert "1.5 kB" in rows["targets"]
    assert rows["answers"].split("\u2502")[4].strip() == "40"
    assert str(kept) in result.stdout


def test_what_metrics_measure_of_unedited_models_is_listed_too(invoke, kept):
    (kept / "measurements").mkdir()
    (kept / "measurements" / "m.json.gz").write_bytes(b"x" * 5)
    assert "Deleted 1 file(s), 5 B" in invoke("cache", "--clear", "measurements").stdout


def test_what_is_cleared_is_gone_and_nothing_else(invoke, kept):
    assert "Deleted 1 file(s), 20 B" in invoke("cache", "--clear", "answers").stdout
    assert sorted(path.name for path in kept.rglob("*") if path.is_file()) == [
        "b.json.gz.damaged", "net.safetensors", "target_hidden.sqlite",
    ]  # fmt: skip
    invoke("cache", "--clear", "all")
    assert sorted(path.name for path in kept.rglob("*")) == ["mend", "net.safetensors"]


def test_only_what_is_old_enough_goes(invoke, kept, refuses):
    result = invoke("cache", "--clear", "all", "--older-than", "30")
    assert "Deleted 1 file(s), 20 B" in result.stdout
    assert (kept / "target_hidden.sqlite").exists()
    refuses("cache", "--older-than", "30", says="got no --clear")


def test_an_empty_cache(invoke, tmp_path):
    assert invoke("cache").stdout == f"Nothing is kept in {tmp_path / 'cache'}.\n"


def test_all_is_well_here(invoke):
    result = invoke("doctor", "--offline")
    assert result.exit_code == 0, result.output
    for part in ("Python", "torch", "transformers", "cores", "optuna (tune)"):
        assert part in result.stdout
    assert result.stdout.splitlines()[-1] == "Everything that is needed is there."


def test_what_is_broken_is_named_with_how_to_mend_it(invoke, monkeypatch):
    needed = ["click>=999", "nonesuch>=2", 'absent>=1; extra == "gguf"']
    monkeypatch.setattr(doctor_module, "requires", lambda _: needed)
    result = invoke("doctor", "--offline")
    assert result.exit_code == 2
    assert result.stderr == "2 thing(s) are broken.\n"
    assert "pip install --upgrade click" in result.stdout
    assert "pip install 'nonesuch>=2'" in result.stdout
    assert "pip install 'editbench[gguf]'" in result.stdout


def test_a_cache_that_cannot_be_written_is_a_fault(invoke, tmp_path):
    (tmp_path / "file").write_text("")
    result = invoke("doctor", "--offline", "--cache", tmp_path / "file" / "cache")
    assert result.exit_code == 2
    assert "cannot be written" in result.stdout
