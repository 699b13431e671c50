"""``edit --from``: an edit that is made again, with other facts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from editbench.cli.options import Decorator, gathering, in_file
from editbench.errors import ConfigError
from editbench.requests import find_superseded

if TYPE_CHECKING:
    from editbench.editors.making import Base
    from editbench.edits.revision import Revision
    from editbench.requests import EditRequest

_N_SHOWN = 5


def base_options() -> Decorator:
    """``--from`` and ``--drop``, passed on as ``base``: an edit, or None."""

    def read(base_file: Path | None, drop: tuple[str, ...]) -> "Base | None":
        if base_file is None:
            if drop:
                raise ConfigError(
                    f"--drop: there is nothing to drop from, got {drop[0]!r} without --from. Name "
                    "the edit file."
                )
            return None
        from editbench.editors.making import Base
        from editbench.edits.weight_edit import WeightEdit

        return Base.of(WeightEdit.load(base_file), str(base_file), drop)

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


def describe_superseded(requests: "Sequence[EditRequest]") -> Iterator[str]:
    """Say which facts later batches take the places of."""
    pairs = find_superseded(requests).items()
    if not pairs:
        return
    named = [f"{requests[one].case_id} by {requests[by].case_id}" for one, by in pairs]
    yield f"Superseded by later batches: {len(named)} fact(s): {_shorten(named)}"


def _list(facts: "tuple[EditRequest, ...]") -> str:
    return f"{len(facts)} fact(s): {_shorten([fact.case_id for fact in facts])}"


def _shorten(names: Sequence[str]) -> str:
    more = len(names) - _N_SHOWN
    return f"{', '.join(names[:_N_SHOWN])}{f' and {more} more' if more > 0 else ''}"
