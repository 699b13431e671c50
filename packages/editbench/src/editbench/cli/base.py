"""``edit --from``: an edit that is made again, with other facts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from editbench.cli.options import Decorator, gathering, in_file
from editbench.errors import ConfigError, EditError

if TYPE_CHECKING:
    from editbench.editors.base import Editor, EditorConfig, Inputs
    from editbench.edits.recipe import EditRecipe
    from editbench.edits.revision import Revision
    from editbench.edits.weight_edit import WeightEdit
    from editbench.requests import EditRequest

_N_SHOWN = 5


@dataclass(frozen=True)
class Base:
    """The edit that ``--from`` names, and what becomes of its facts.

    Attributes:
        path: Its file.
        edit: It itself.
        recipe: What it was made from.
        drop: Ids of its facts that are to go.
    """

    path: Path
    edit: "WeightEdit"
    recipe: "EditRecipe"
    drop: tuple[str, ...]

    def configure(self, editor: "type[Editor]") -> "tuple[EditorConfig, str]":
        """Its hyperparameters, and where they are from.

        Raises:
            ConfigError: It was made by another editor.
        """
        card = self.edit.card
        if card.editor != editor.name:
            raise ConfigError(
                f"--from: the edit was made by '{card.editor}', got --editor {editor.name}. Leave "
                "--editor out, or write the facts anew without --from."
            )
        return editor.config_type.parse(card.config, str(self.path)), f"those of {self.path}"

    def complete(self, inputs: "Inputs") -> "Inputs":
        """The inputs with the edit's own context prefixes, where none are given."""
        from editbench.editors.context_prefixes import ContextPrefixes

        groups = self.edit.card.extra.get("context_prefixes")
        if inputs.context_prefixes is not None or groups is None:
            return inputs
        return replace(inputs, context_prefixes=ContextPrefixes.of(groups, str(self.path)))

    def check_inputs(self, given: "Inputs", completed: "Inputs") -> None:
        """Refuse other second moments than the edit was made with, unless somebody chose them.

        Raises:
            ConfigError: They are others.
        """
        content = completed.content
        for option, name in (("--second-moments", "second_moments"), ("--corpus", "corpus")):
            before, now = self.recipe.inputs.get(name), content.get(name)
            if before != now and given.second_moments is None and given.corpus is None:
                raise ConfigError(
                    f"--from: the edit was made with other second moments, got {_name(now)} for "
                    f"{option}; expected {_name(before)}. Give those that {self.path} was made "
                    "with, or others, by --second-moments or --corpus."
                )


def base_options() -> Decorator:
    """``--from`` and ``--drop``, passed on as ``base``: an edit, or None."""

    def read(base_file: Path | None, drop: tuple[str, ...]) -> Base | None:
        if base_file is None:
            if drop:
                raise ConfigError(
                    f"--drop: there is nothing to drop from, got {drop[0]!r} without --from. Name "
                    "the edit file."
                )
            return None
        from editbench.edits.weight_edit import WeightEdit

        edit = WeightEdit.load(base_file)
        return Base(base_file, edit, recipe_of(edit, base_file), drop)

    return gathering(
        "base",
        read,
        click.option(
            "--from",
            "base_file",
            type=in_file,
            metavar="EDIT",
            help="Write what this edit file wrote, less --drop, with --facts: the same numbers as "
            "from the start, in seconds, since the file keeps target states. Model, editor, "
            "hyperparameters, prefixes, seed and batch size are the edit's.",
        ),
        click.option(
            "--drop",
            multiple=True,
            metavar="CASE_ID",
            help="A fact of --from that is not to be written any more. Repeatable.",
        ),
    )


def recipe_of(edit: "WeightEdit", path: Path) -> "EditRecipe":
    """What an edit was made from.

    Raises:
        EditError: Its file does not say.
    """
    if edit.recipe is None:
        raise EditError(
            f"load edit: {str(path)!r} does not say which facts it was made from. Write it again "
            "with this version's 'editbench edit'."
        )
    return edit.recipe


def describe_revision(revision: "Revision", *, with_added: bool) -> Iterator[str]:
    """Say what becomes of the facts, a line for each thing that happens to some."""
    for facts, what in ((revision.dropped, "Dropped"), (revision.expired, "Expired, left out")):
        if facts:
            yield f"{what}: {_list(facts)}"
    for old, new in revision.superseded:
        yield (
            f"Superseded: {old.case_id} ({old.text!r} {old.target!r}) by {new.case_id} "
            f"({new.target!r})"
        )
    if revision.known:
        yield f"Written already: {_list(revision.known)}"
    if revision.added and with_added:
        yield f"Added: {_list(revision.added)}"


def _list(facts: "tuple[EditRequest, ...]") -> str:
    named = ", ".join(fact.case_id for fact in facts[:_N_SHOWN])
    more = len(facts) - _N_SHOWN
    return f"{len(facts)} fact(s): {named}{f' and {more} more' if more > 0 else ''}"


def _name(content: "str | Mapping[str, Any] | None") -> str:
    if content is None:
        return "none"
    return f"'{content['name']}'" if isinstance(content, Mapping) else f"a file with hash {content}"
