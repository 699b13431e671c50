"""The rows whose keys make a fact's mean key, and how they are put into batches."""

from collections.abc import Sequence
from dataclasses import dataclass

from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.row_batches import length_sorted_batches
from editbench.editors.subject_tokens import key_row
from editbench.models.editable import EditableModel
from editbench.replay.prefix_states import count_shared
from editbench.requests import EditRequest


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One fact after one context prefix, up to its subject's last token.

    Attributes:
        edit: Which fact.
        weight: What its key weighs in the fact's mean key.
        is_bare: Whether the prefix is empty.
        context: Leading tokens that all facts have after this prefix; run once for all of them.
        own: The tokens behind those, at least one; the last is the subject's.
    """

    edit: int
    weight: float
    is_bare: bool
    context: tuple[int, ...]
    own: tuple[int, ...]


def make_rows(
    model: EditableModel,
    requests: Sequence[EditRequest],
    prefixes: ContextPrefixes,
    weighting: str,
    *,
    share: bool,
) -> list[SweepRow]:
    """Put all facts after all prefixes, and after none in any case.

    Args:
        model: The model, for its tokens.
        requests: The facts.
        prefixes: Context prefixes.
        weighting: See `ContextPrefixes.weights`.
        share: Whether what all rows of a prefix begin with is run by itself.
    """
    weighted = dict.fromkeys(["", *prefixes.flat], 0.0)
    for prefix, weight in zip(prefixes.flat, prefixes.weights(weighting), strict=True):
        weighted[prefix] += weight
    made = []
    for prefix, weight in weighted.items():
        rows = [key_row(model.tokens, request, prefix).token_ids for request in requests]
        n = count_shared([row[:-1] for row in rows]) if share and prefix else 0
        made += [
            SweepRow(edit, weight, prefix == "", row[:n], row[n:]) for edit, row in enumerate(rows)
        ]
    return made


def batch_rows(rows: Sequence[SweepRow], token_budget: int) -> list[list[SweepRow]]:
    """Rows that run together: of like length; all of the bare prompt, or all behind a context."""
    kinds: dict[tuple[bool, bool], list[SweepRow]] = {}
    for row in rows:
        kinds.setdefault((row.is_bare, bool(row.context)), []).append(row)
    return [
        [some[index] for index in batch]
        for some in kinds.values()
        for batch in length_sorted_batches([len(row.own) for row in some], token_budget)
    ]


def count_kept(batches: Sequence[Sequence[SweepRow]], d_model: int, d_key: int) -> int:
    """Numbers that are kept of batches from layer to layer.

    Args:
        batches: Rows that run together.
        d_model: Width of a state.
        d_key: Width of a key, of which those of bare prompts are kept; 0 keeps none.
    """
    return sum(
        len(batch)
        * max(len(row.own) for row in batch)
        * (d_model + (d_key if batch[0].is_bare else 0))
        for batch in batches
    )
