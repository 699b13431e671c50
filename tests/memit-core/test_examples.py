"""What the documentation shows runs, and does what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import memit_core

README = Path(__file__).parents[2] / "packages" / "memit-core" / "README.md"
MODULES = [f"memit_core.{module.name}" for module in pkgutil.iter_modules(memit_core.__path__)]


def test_readme() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(blocks[0], str(README), "exec"), {})


def test_readme_names_everything_public() -> None:
    text = README.read_text()
    functions = [name for name in memit_core.__all__ if callable(getattr(memit_core, name))]
    # Containers that functions return need no line of their own.
    missing = {name for name in functions if name not in text} - {
        "Captured",
    }
    assert not missing


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    with torch.random.fork_rng():
        failed, _ = doctest.testmod(importlib.import_module(name))
    assert not failed
