"""What is published: wheels, in an environment that has nothing of this repository."""

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
PACKAGES = ("memit-core", "editbench")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    for package in PACKAGES:
        source = ROOT / "packages" / package
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
            cwd=source,
            check=True,
            capture_output=True,
        )
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheels, tmp_path_factory):
    """An interpreter with the wheels, and of this environment what they require alone."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    own = next(folder.glob("lib/python*/site-packages"))
    for wheel in wheels:
        zipfile.ZipFile(wheel).extractall(own)
    # Editable packages of this environment are not seen there: a path of a path file has none.
    (own / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def run(python, *arguments, cwd):
    return subprocess.run(
        [python, "-I", "-m", "editbench.cli", *arguments],
        cwd=cwd,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_they_hold_the_packages_and_what_these_read(wheels):
    names = [name for wheel in wheels for name in zipfile.ZipFile(wheel).namelist()]
    for part in (
        "memit_core/py.typed",
        "editbench/py.typed",
        "editbench/atlas/model/",
        "editbench/datasets/prose.txt",
        "editbench/models/settings/smollm2-135m.yaml",
        "editbench/editors/references.bib",
    ):
        assert any(part in name for name in names), part
    assert not any(name.startswith("tests/") or "/tests/" in name for name in names)


def test_the_command_line_runs_from_them(python, tmp_path):
    where = subprocess.run(
        [python, "-I", "-c", "import editbench, memit_core; print(editbench.__file__)"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert str(python.parent.parent) in where
    assert "Everything that is needed is there." in run(python, "doctor", "--offline", cwd=tmp_path)
    listed = json.loads(run(python, "list", "--format", "json", cwd=tmp_path))
    assert {"memit", "unedited"} <= {each["name"] for each in listed["editors"]}
    assert listed["problems"] == []


def test_facts_are_written_with_them(python, tmp_path):
    fact = {"subject": "Furvrul Tlethkok", "prompt": "{} works as a", "target": "tailor"}
    (tmp_path / "facts.jsonl").write_text(json.dumps(fact))
    said = run(
        python, "edit", "--model", "atlas", "--facts", "facts.jsonl", "--out", "e.safetensors",
        "--check", "--no-cache", cwd=tmp_path,
    )  # fmt: skip
    assert "is the target for 1 of 1 facts" in said
