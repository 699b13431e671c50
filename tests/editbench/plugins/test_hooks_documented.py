"""Every hook is documented, with exactly the arguments that it has."""

import inspect
import re
from pathlib import Path

import pytest

from editbench.plugins import hookspecs

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "plugins.md"


@pytest.mark.parametrize("hook", hookspecs.HOOKS)
def test_documented(hook):
    specification = getattr(hookspecs, hook)
    arguments = ", ".join(inspect.signature(specification).parameters)
    text = REFERENCE.read_text(encoding="utf-8")
    section = re.search(rf"^### `{hook}\({arguments}\)`$(.+?)(?=^##|\Z)", text, re.M | re.S)
    assert section, f"{REFERENCE} lacks a section '### `{hook}({arguments})`'"
    assert "Called" in section[1]  # says when
    assert "Called" in inspect.getdoc(specification)


def test_nothing_is_documented_that_is_not_there():
    text = REFERENCE.read_text(encoding="utf-8")
    assert set(re.findall(r"^### `(\w+)\(", text, re.M)) == set(hookspecs.HOOKS)
