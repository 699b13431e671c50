"""``editbench show`` and ``editbench diff``: the facts that edit files were made from."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from editbench.cli import options
from editbench.cli.options import in_file
from editbench.cli.terminal import lay_out
from editbench.requests import find_superseded

if TYPE_CHECKING:
    from editbench.edits.card import EditCard
    from editbench.edits.revision import FactDifference
    from editbench.edits.weight_edit import WeightEdit
    from editbench.requests import EditRequest

_SHOW_EXAMPLES = """\b
Examples:
  editbench show edit.safetensors
  editbench show edit.safetensors --format json
"""
_DIFF_EXAMPLES = """\b
Example:
  editbench diff edit.safetensors edit2.safetensors
"""
_NOTES = ("source", "author", "date", "note", "expires")


@click.command(epilog=_SHOW_EXAMPLES)
@click.argument("edit", type=in_file, metavar="EDIT")
@options.output_format()
def show(edit: Path, output_format: str) -> None:
    """Show what an edit file holds.

    The model that it is for, the editor, the tensors that it changes, and its facts: what became of
    each, and what was noted beside it.
    """
    from editbench.edits.weight_edit import WeightEdit

    loaded = WeightEdit.load(edit)
    facts = list(_describe_facts(loaded))
    if output_format == "json":
        card = loaded.card.model_dump(mode="json")
        click.echo(json.dumps({**card, "facts": facts}, indent=2, ensure_ascii=False))
        return
    for line in _describe_card(loaded, edit):
        click.echo(line)
    if loaded.recipe is None:
        click.echo("facts: not kept in this file")
    else:
        click.echo(_draw_facts(facts).rstrip("\n"))


@click.command(epilog=_DIFF_EXAMPLES)
@click.argument("first", type=in_file, metavar="EDIT")
@click.argument("second", type=in_file, metavar="OTHER")
@options.output_format()
def diff(first: Path, second: Path, output_format: str) -> None:
    """Show how the facts of two edit files differ.

    Facts are compared by what they say, whatever their ids: those that only one of the files has,
    and those that have another target. What else differs in their making is listed, too.
    """
    from editbench.editors.making import recipe_of
    from editbench.edits.revision import compare_facts
    from editbench.edits.weight_edit import WeightEdit

    edits = [WeightEdit.load(path) for path in (first, second)]
    recipes = [
        recipe_of(edit, str(path)) for edit, path in zip(edits, (first, second), strict=True)
    ]
    difference = compare_facts(recipes[0].requests, recipes[1].requests)
    settings = dict(_differing_settings(*edits))
    if output_format == "json":
        content = {
            "dropped": [_words(fact) for fact in difference.dropped],
            "added": [_words(fact) for fact in difference.added],
            "changed": [[_words(fact) for fact in pair] for pair in difference.changed],
            "n_same": difference.n_same,
            "settings": settings,
        }
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    for line in _describe_difference(difference):
        click.echo(line)
    for name, (one, other) in settings.items():
        click.echo(f"{name}: {json.dumps(one)} → {json.dumps(other)}")


def _describe_card(edit: "WeightEdit", path: Path) -> Iterator[str]:
    card = edit.card
    yield f"{path}: {path.stat().st_size / 1e6:.3g} MB"
    yield f"model: {card.model_name} ({card.model_fingerprint}, {card.model_dtype})"
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    yield f"editor: {card.editor} ({versions})"
    yield from describe_updates(card)
    if edit.recipe is not None:
        recipe = edit.recipe
        batches = "all at once" if recipe.batch_size is None else f"{recipe.batch_size} at a time"
        yield (
            f"made from: {len(recipe.requests)} fact(s), {batches}, seed {recipe.seed}; "
            f"{len(recipe.targets.keys)} target states kept"
        )


def describe_updates(card: "EditCard") -> Iterator[str]:
    """A line for each parameter: the rank of its update, and how large it is."""
    updates: Mapping[str, Mapping[str, float | None]] = card.extra.get("updates", {})
    for parameter, update in updates.items():
        rank = "dense" if update["rank"] is None else f"rank {update['rank']}"
        norm = update["relative_norm"]
        yield f"  {parameter}: {rank}{'' if norm is None else f', ‖Δ‖/‖W‖ = {norm:.3g}'}"


def _describe_facts(edit: "WeightEdit") -> Iterator[dict[str, Any]]:
    """Each fact with what became of it, and its notes."""
    if edit.recipe is None:
        return
    requests = edit.recipe.requests
    superseded = find_superseded(requests)
    outcomes = {each["case_id"]: each for each in edit.card.extra.get("facts", ())}
    for place, request in enumerate(requests):
        later = superseded.get(place)
        outcome: Mapping[str, str] = outcomes.get(request.case_id, {})
        notes = {name: value for name, value in asdict(request.notes).items() if value is not None}
        yield {
            **_words(request),
            "status": outcome.get("status", "") if later is None else "superseded",
            **({"why": outcome["why"]} if "why" in outcome else {}),
            **({} if later is None else {"superseded_by": requests[later].case_id}),
            **notes,
        }


def _words(request: "EditRequest") -> dict[str, str]:
    return {"case_id": request.case_id, "prompt": request.text, "target": request.target}


def _draw_facts(facts: Sequence[Mapping[str, Any]]) -> str:
    from editbench.results.tables.model import Cell, Column, Table
    from editbench.results.tables.terminal import draw_table

    noted = [
        name for name in ("why", "superseded_by", *_NOTES) if any(name in fact for fact in facts)
    ]
    names = ("case_id", "prompt", "target", "status", *noted)
    rows = tuple(tuple(Cell(str(fact.get(name, ""))) for name in names) for fact in facts)
    return lay_out(draw_table(Table("", tuple(map(Column, names)), (rows,))))


def _describe_difference(difference: "FactDifference") -> Iterator[str]:
    for mark, facts in (("-", difference.dropped), ("+", difference.added)):
        for fact in facts:
            yield f"{mark} {fact.case_id}: {fact.text} {fact.target}"
    for old, new in difference.changed:
        yield f"~ {new.case_id}: {new.text} {old.target} → {new.target}"
    yield (
        f"{difference.n_same} the same, {len(difference.dropped)} dropped, "
        f"{len(difference.added)} added, {len(difference.changed)} changed"
    )


def _differing_settings(
    first: "WeightEdit", second: "WeightEdit"
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """What else was not the same: name to both values."""
    sides = []
    for edit in (first, second):
        assert edit.recipe is not None
        own: dict[str, Any] = {"model": edit.card.model_fingerprint, "editor": edit.card.editor}
        own |= {f"{edit.card.editor}.{name}": value for name, value in edit.card.config.items()}
        own |= {"seed": edit.recipe.seed, "batch_size": edit.recipe.batch_size}
        sides.append({**own, **edit.recipe.inputs})
    one, other = sides
    for name in dict.fromkeys([*one, *other]):
        if one.get(name) != other.get(name):
            yield name, (one.get(name), other.get(name))
