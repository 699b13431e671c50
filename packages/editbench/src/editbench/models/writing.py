"""What a model says by itself: texts of the likeliest tokens, behind rows that it has read."""

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from editbench.models.editable import EditableModel
from editbench.models.head import select_head_positions
from editbench.models.lean_modules import lean_modules
from editbench.models.passages import Label, Opening
from editbench.models.preallocated_states import PreallocatedStates
from editbench.models.shared_prefix import PrefixedStates

# A mark, with the quotes and brackets that it closes, before white space; but for the period of an
# initial or a usual abbreviation.
_SENTENCE_END = re.compile(
    r"""(?=\n)|[。！？]
    |(?<!\b[A-Za-z])(?<!\b(?:St|Dr|Mr|Ms|Jr|Sr|Mt|Ft|No|vs))(?<!\b(?:Mrs|Rev|Gen))(?<!\bProf)
    [.!?]+[\"')\]”’]*(?=\s)""",
    re.VERBOSE,
)
_MARKS = frozenset("\n.!?。！？")


def first_sentence(text: str) -> str | None:
    """A text up to the end of its first sentence or line; None if neither has ended yet.

    A line ends with a line break. A sentence ends with a period, exclamation or question mark that
    white space follows, or their full-width forms. The periods of initials (``D.C.``) and of a few
    usual abbreviations (``St. Petersburg``) end none.
    """
    visible = text.lstrip()
    found = _SENTENCE_END.search(visible)
    return None if found is None else visible[: found.end()]


def find_ends(model: EditableModel) -> frozenset[int]:
    """The tokens at which a model's own generation stops."""
    settings = getattr(model.model, "generation_config", None) or model.model.config
    ends = settings.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)


@dataclass
class Writer:
    """Writes on a model, and knows when a text is over.

    Attributes:
        model: The model as it stands.
    """

    model: EditableModel
    _may_end: dict[int, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ends = find_ends(self.model)

    def go_on(
        self,
        openings: Sequence[Sequence[Opening[Label]]],
        first: Sequence[int],
        cache: DynamicCache | None,
        mask: Tensor,
        rows: Sequence[int],
    ) -> list[list[int]]:
        """Go on behind rows that have been read, each until all of its openings are satisfied.

        Args:
            openings: What wants a text of each row, at least one.
            first: The likeliest token behind each row.
            cache: Keys and values of what has been read, which stay as they are; None if the model
                keeps none that could be used: then every step reads whole rows.
            mask: Which places of the cache are no padding, `[n_cached_rows, n_cached]`.
            rows: Which of the cache's rows each is.

        Returns:
            What was written behind each row, its end included.
        """
        written = [[token] for token in first]
        left = self._find_unfinished(range(len(written)), openings, written)
        if cache is not None and left:
            n_more = max(opening.n_tokens for some in openings for opening in some)
            kept = torch.tensor([rows[row] for row in left], device=mask.device)
            cache, mask = copy_rows(cache, kept, n_more), mask[kept]
        with lean_modules(self.model):
            while left:
                live = left
                if cache is None:
                    logits = self._read_whole(
                        [[*openings[r][0].context, *written[r]] for r in live]
                    )
                else:
                    starts = [len(openings[row][0].context) + len(written[row]) - 1 for row in live]
                    ids = [written[row][-1:] for row in live]
                    arguments = self.model.batch_behind(mask, ids, starts)
                    mask = arguments["attention_mask"]
                    output = self.model.model(**arguments, past_key_values=cache, use_cache=True)
                    logits = output.logits[:, -1]
                for row, token in zip(live, logits.argmax(dim=1).tolist(), strict=True):
                    written[row].append(token)
                left = self._find_unfinished(live, openings, written)
                if cache is not None and 0 < len(left) < len(live):
                    places = dict(zip(live, range(len(live)), strict=True))
                    kept = torch.tensor([places[row] for row in left], device=mask.device)
                    cache.batch_select_indices(kept)
                    mask = mask[kept]
        return written

    def _read_whole(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits behind rows, `[n_rows, vocabulary]`."""
        last = torch.tensor([len(row) - 1 for row in rows])
        with select_head_positions(self.model, torch.arange(len(rows)), last):
            logits: Tensor = self.model.model(**self.model.batch(rows), use_cache=False).logits[0]
        return logits

    def text(self, opening: Opening[Label], ids: Sequence[int]) -> str:
        """What tokens that were written behind an opening say, as far as it asks for them."""
        own = takewhile(lambda token: token not in self._ends, ids[: opening.n_tokens])
        decode = self.model.tokens.decode
        text = decode([*opening.context, *own])[len(decode(opening.context)) :]
        text = text.rstrip("\ufffd")  # the last character may lack some of its bytes
        return (opening.sentence and first_sentence(text)) or text

    def _find_unfinished(
        self,
        rows: Iterable[int],
        openings: Sequence[Sequence[Opening[Label]]],
        written: Sequence[Sequence[int]],
    ) -> list[int]:
        return [row for row in rows if not self._is_over(openings[row], written[row])]

    def _is_over(self, openings: Sequence[Opening[Label]], ids: Sequence[int]) -> bool:
        if ids[-1] in self._ends:
            return True
        short = [opening for opening in openings if len(ids) < opening.n_tokens]
        return not short or (all(opening.sentence for opening in short) and self._has_ended(ids))

    def _has_ended(self, ids: Sequence[int]) -> bool:
        """Whether a sentence has; what has no mark near its end is not even decoded."""
        for token in ids[-2:]:
            if token not in self._may_end:
                piece = self.model.tokens.decode([token])
                self._may_end[token] = not _MARKS.isdisjoint(piece)
        return any(self._may_end[token] for token in ids[-2:]) and (
            first_sentence(self.model.tokens.decode(ids)) is not None
        )


def copy_rows(cache: DynamicCache, rows: Tensor, n_more: int) -> DynamicCache:
    """Some rows of a cache, with room for `n_more` tokens each; the cache stays as it is."""
    made = copy.copy(cache)
    n_positions = cache.get_seq_length() + n_more
    made.layers = []
    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            made.layers.append(PreallocatedStates.of_rows(layer, rows, n_positions))
        elif isinstance(layer, PrefixedStates):
            made.layers.append(layer.of_rows(rows, n_more))
        else:  # those with a sliding window are small
            own = cast(DynamicLayer, copy.copy(layer))
            own.batch_select_indices(rows)
            made.layers.append(own)
    return made
