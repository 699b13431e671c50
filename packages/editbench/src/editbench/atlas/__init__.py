"""Atlas: a synthetic world, and a small model that knows it.

The world is generated, the model was trained on its text by `editbench.atlas.train` and ships with
the package. Nothing in this package imports torch until a model is trained or measured.
"""

import json
from importlib.resources import files
from pathlib import Path

from editbench.atlas.relations import RELATIONS, Kind, Relation
from editbench.atlas.text import Fact, Subject
from editbench.atlas.world import World

__all__ = [
    "RELATIONS",
    "Fact",
    "Kind",
    "Relation",
    "Subject",
    "World",
    "default_world",
    "model_folder",
]


def model_folder() -> Path:
    """Find the shipped model: an ordinary Hugging Face folder, GPT-J architecture."""
    return Path(str(files("editbench.atlas").joinpath("model")))


def default_world() -> World:
    """Make the world that the shipped model was trained on, as recorded beside its weights."""
    record = json.loads((model_folder() / "training.json").read_text(encoding="utf-8"))
    return World(**record["world"])
