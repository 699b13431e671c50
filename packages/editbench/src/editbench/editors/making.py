"""How an edit is made so that it can be made again, with other facts, and how that is done."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from editbench.editors.base import Editor, EditorConfig, Inputs, Resources
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.targets.cache import TargetLedger
from editbench.edits.edit import Edit
from editbench.edits.recipe import EditRecipe, KeptTargets
from editbench.errors import ConfigError, EditError
from editbench.models.editable import EditableModel
from editbench.progress import Progress, report_nothing
from editbench.requests import EditRequest, cut_batches


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

    def take_over(
        self, given: Inputs, completed: Inputs, *, is_collected: bool
    ) -> tuple[Inputs, dict[str, Any]]:
        """What the edit is made again with.

        Args:
            given: What somebody chose.
            completed: The same, completed for the model.
            is_collected: Whether second moments come into it: an editor may need none, and a plan
                collects none.

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
            is_chosen = given.second_moments is not None or given.corpus is not None
            if is_collected and before != now and not is_chosen:
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


@dataclass(frozen=True)
class Means:
    """What an edit is made with.

    Attributes:
        model: The model.
        editor: The editor, configured.
        resources: What surrounds the edit.
        ledger: Target states that are known already, and those that come to be used.
        content: What the edit file says of the inputs.
    """

    model: EditableModel
    editor: Editor
    resources: Resources
    ledger: TargetLedger
    content: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: EditableModel,
        editor: Editor,
        given: Inputs,
        completed: Inputs,
        *,
        base: Base | None,
        seed: int,
        cache: Path | None,
        report_progress: Progress = report_nothing,
    ) -> Self:
        """Put them together.

        Args:
            model: The model.
            editor: The editor, configured.
            given: What somebody chose.
            completed: The same, completed for the model.
            base: The edit that is made again, which says what nobody chose; None makes a new one.
            seed: Source of every random choice.
            cache: Folder for results worth keeping between runs; None keeps nothing.
            report_progress: Called as long work advances.

        Raises:
            ConfigError: `base` was made with other second moments; see `Base.take_over`.
        """
        content = completed.content
        if base is not None:
            collects = model.planned_device is None and bool(editor.needs_second_moments(model))
            completed, content = base.take_over(given, completed, is_collected=collects)
        ledger = TargetLedger(None if base is None else base.recipe.targets)
        resources = completed.resources(seed, cache, report_progress, ledger)
        return cls(model, editor, resources, ledger, content)

    def write(
        self,
        requests: Sequence[EditRequest],
        batch_size: int | None,
        on_written: Callable[[int], None] | None = None,
        *,
        keep_targets: bool = True,
    ) -> Edit:
        """Compute the edit, which knows what it was made from.

        Args:
            requests: What to write.
            batch_size: How many at a time; None for all at once.
            on_written: Told after each batch but the last how many are written.
            keep_targets: Whether its file is to hold the target states.
        """
        batches = cut_batches(requests, batch_size)
        edit = self.editor.edit_in_batches(self.model, batches, self.resources, on_written)
        kept = self.ledger.kept() if keep_targets else KeptTargets.of([])
        seed = self.resources.seed
        edit.recipe = EditRecipe(tuple(requests), seed, batch_size, self.content, kept)
        return edit


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
