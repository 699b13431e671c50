"""The import contracts in pyproject.toml name every editor there is."""

import inspect
import tomllib
from pathlib import Path

import pytest

from editbench.editors.base import Editor
from editbench.plugins import PluginManager

CONTRACTS = {
    contract["name"]: contract
    for contract in tomllib.loads(
        (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    )["tool"]["importlinter"]["contracts"]
}


def modules_of_editors() -> set[str]:
    """The module, or folder, that each editor has to itself."""
    plugins = PluginManager()
    names = [each.name for each in plugins.registrations("editors")]
    editors: list[type[Editor]] = [plugins.get_editor(name) for name in names]
    ours = [editor for editor in editors if editor.__module__.startswith("editbench.editors.")]
    assert len(ours) > 5
    assert not any(inspect.isabstract(editor) for editor in ours)
    return {".".join(editor.__module__.split(".")[:3]) for editor in ours}


@pytest.mark.parametrize(
    ("contract", "field"),
    [
        ("editors share parts, never each other", "modules"),
        ("what editors share knows none of them", "forbidden_modules"),
    ],
)
def test_every_editor_is_held_apart(contract: str, field: str) -> None:
    assert set(CONTRACTS[contract][field]) == modules_of_editors()


def test_no_shared_part_is_left_out() -> None:
    """Whatever lies in editors/ is an editor, or knows none."""
    import editbench.editors

    folder = Path(editbench.editors.__file__).parent
    parts = {
        f"editbench.editors.{path.stem}"
        for path in folder.iterdir()
        if path.stem not in ("__init__", "__pycache__")
    }
    shared = set(CONTRACTS["what editors share knows none of them"]["source_modules"])
    assert shared == parts - modules_of_editors()
