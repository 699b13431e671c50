"""An edit that is made again, with other facts: what it takes from the one that it stands on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from editbench.editors.base import Editor, EditorConfig, Inputs
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.edits.edit import Edit
from editbench.edits.recipe import EditRecipe
from editbench.errors import ConfigError, EditError


@dataclass(frozen=True)
class Base:
    """The edit that another one is made from.

    Attributes:
        name: What messages call it: its file, or an argument.
        edit: It itself.
        recipe: What it was made from.
        drop: Ids of its facts that are to go.
    """

    name: str
    edit: Edit
    recipe: EditRecipe
    drop: tuple[str, ...] = ()

    @classmethod
    def of(cls, edit: Edit, name: str, drop: tuple[str, ...] = ()) -> Self:
        """Take up an edit.

        Raises:
            EditError: It does not say which facts it was made from.
        """
        return cls(name, edit, recipe_of(edit, name), drop)

    def configure(self, editor: type[Editor]) -> EditorConfig:
        """Its hyperparameters; `editor` is the one that it was made by."""
        return editor.config_type.parse(self.edit.card.config, self.name)

    def take_over(self, given: Inputs, completed: Inputs) -> tuple[Inputs, dict[str, Any]]:
        """What the edit is made again with.

        Args:
            given: What somebody chose.
            completed: The same, completed for the model.

        Returns:
            The inputs with the edit's own context prefixes, where none are given; and what its file
            says of the inputs, which names prefixes where a user once gave them.

        Raises:
            ConfigError: The second moments are others than the edit was made with, and nobody chose
                them.
        """
        content = completed.content
        for name, called in (("second_moments", "second moments"), ("corpus", "a corpus")):
            before, now = self.recipe.inputs.get(name), content.get(name)
            if before != now and given.second_moments is None and given.corpus is None:
                raise ConfigError(
                    f"edit: {self.name} was made with other second moments, got {_name(now)} for "
                    f"{called}; expected {_name(before)}. Give those that it was made with, or "
                    "others: a file of second moments, or a corpus."
                )
        kept = ("context_prefixes",) if "context_prefixes" in self.recipe.inputs else ()
        content = {**{name: self.recipe.inputs[name] for name in kept}, **content}
        groups = self.edit.card.extra.get("context_prefixes")
        if completed.context_prefixes is None and groups is not None:
            own = ContextPrefixes.of(groups, self.name)
            completed = replace(completed, context_prefixes=own)
        return completed, content


def recipe_of(edit: Edit, name: str) -> EditRecipe:
    """What an edit was made from.

    Raises:
        EditError: It does not say.
    """
    if edit.recipe is None:
        raise EditError(
            f"load edit: {name!r} does not say which facts it was made from. Write it again with "
            "this version's 'editbench edit'."
        )
    return edit.recipe


def _name(content: str | Mapping[str, Any] | None) -> str:
    if content is None:
        return "none"
    return f"'{content['name']}'" if isinstance(content, Mapping) else f"a file with hash {content}"
