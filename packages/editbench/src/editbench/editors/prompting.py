"""Baselines that change prompts and no weights: all facts in the context, or those that fit."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from editbench.editors.base import Editor, EditorConfig, Resources
from editbench.editors.references import cite
from editbench.editors.stream import Carried, Stream, tell_written
from editbench.edits.card import EditCard, hash_requests
from editbench.edits.edit import Edit
from editbench.edits.prompt_edit import Preface, PromptEdit, WordingName, state_fact
from editbench.errors import ConfigError
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest, find_standing

if TYPE_CHECKING:
    from bm25s import BM25

Choice = Callable[[str], Sequence[int]]
"""Which of the facts stand before a prompt, by their indices."""


class PromptingConfig(EditorConfig):
    """How facts are told."""

    wording: WordingName = Field(
        default="sentence",
        description="how facts stand before a question: sentence, new-fact or instruction",
    )


class InContext(Editor):
    """All facts stand before every question, a sentence each; no weight changes.

    With facts that are written one at a time (``--n-edits 1 --min-cases 300``) it is the fact
    before the questions about it and its neighbors, as in-context editing is usually measured. What
    the model does not take, since its context is too short for all facts, is an error.
    """

    name: ClassVar[str] = "in-context"
    computes_nothing: ClassVar[bool] = True  # it is the answers that cost more, see `preface`
    good_for: ClassVar[str] = "a baseline of a few facts, without any change of weights"
    citation: ClassVar[str] = cite("zheng2023ike")
    config_type: ClassVar[type[EditorConfig]] = PromptingConfig
    config: PromptingConfig

    def preface(self, requests: Sequence[EditRequest]) -> Preface:
        """The facts, as sentences; see `Editor.preface`."""
        sentences = tuple(state_fact(request) for request in requests)
        return Preface(sentences, self._choice(requests), self.config.wording)

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        """Compute the edit; see `Editor.edit`."""
        model.check_known(self.name)
        card = EditCard.of(
            model,
            editor=self.name,
            config=self.config,
            requests=requests,
            extra={"facts": tell_written(requests)},
        )
        return PromptEdit(card, self.preface(requests))

    def open_stream(
        self, model: EditableModel, resources: Resources, carried: Carried | None = None
    ) -> Stream:
        """All facts so far stand together, see `Editor.open_stream`."""
        return PromptStream(self, model, resources, carried)

    def _choice(self, requests: Sequence[EditRequest]) -> Choice:
        every = range(len(requests))
        return lambda prompt: every


class PromptStream(Stream):
    """Writes all facts so far as one edit of prompts, but those that a later one has replaced."""

    def __init__(
        self, editor: Editor, model: EditableModel, resources: Resources, carried: Carried | None
    ) -> None:
        self._editor, self._model, self._resources = editor, model, resources
        self._requests = [] if carried is None else carried.requests

    def write(self, batch: Sequence[EditRequest]) -> Edit:
        """Write one more batch; see `Stream.write`."""
        self._requests += batch
        standing = find_standing(self._requests)
        edit = self._editor.edit(self._model, standing, self._resources)
        changes = {"requests_hash": hash_requests(self._requests), "n_edits": len(self._requests)}
        edit.card = edit.card.model_copy(update=changes)
        return edit

    @property
    def carried(self) -> Carried:
        """The facts."""
        return Carried({}, Carried.write_requests(self._requests))


class RetrievalConfig(PromptingConfig):
    """How facts are found and told."""

    wording: WordingName = Field(
        default="instruction",
        description="how facts stand before a question: sentence, new-fact or instruction",
    )

    n_facts: int = Field(default=1, ge=1, description="at most how many facts before a question")
    least_fit: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="which share of the score of its own subject a question must reach for a fact",
    )


class Retrieval(InContext):
    """The facts that fit a question stand before it, found by BM25; no weight changes.

    A fact fits if the question has enough of its subject: if its BM25 score by the words of the
    subject reaches `least_fit` of what the subject itself scores. Of those that fit, the `n_facts`
    whose prompts score most stand before the question, the best last. A question that no fact fits
    comes through untouched. Words are compared without case.
    """

    name: ClassVar[str] = "retrieval"
    good_for: ClassVar[str] = "a baseline of many facts, without any change of weights"
    citation: ClassVar[str] = cite("robertson2009bm25")
    config_type: ClassVar[type[EditorConfig]] = RetrievalConfig
    config: RetrievalConfig

    def _choice(self, requests: Sequence[EditRequest]) -> Choice:
        if not requests:
            return lambda prompt: ()
        subjects = [_split_words(request.subject) for request in requests]
        by_subject, by_prompt = (
            _index(subjects),
            _index([_split_words(request.text) for request in requests]),
        )
        least = self.config.least_fit * np.array(
            [_score(by_subject, words)[place] for place, words in enumerate(subjects)]
        )

        def choose(prompt: str) -> Sequence[int]:
            words = _split_words(prompt)
            reached = _score(by_subject, words)
            fitting = np.flatnonzero((reached >= least) & (reached > 0))
            scores = _score(by_prompt, words)[fitting]
            best_last = fitting[np.argsort(scores, kind="stable")]
            return [int(place) for place in best_last[-self.config.n_facts :]]

        return choose


def _split_words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _index(texts: Sequence[Sequence[str]]) -> "BM25":
    try:
        from bm25s import BM25
    except ImportError as error:
        raise ConfigError(
            "editor 'retrieval': needs the package bm25s, which is not installed. Install it: pip "
            "install 'editbench[retrieval]'."
        ) from error
    found = BM25()
    found.index([list(words) for words in texts], show_progress=False)
    return found


def _score(index: "BM25", words: Sequence[str]) -> np.ndarray:
    """BM25 scores of all texts of an index, `[n_texts]`; words count once."""
    known = [word for word in dict.fromkeys(words) if word in index.vocab_dict]
    if not known:
        return np.zeros(index.scores["num_docs"])
    return np.asarray(index.get_scores(known))
