"""Facts that stand before the questions that they fit: an edit of prompts, not of weights."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from editbench.edits.card import EditCard
from editbench.edits.edit import Edit
from editbench.errors import EditError
from editbench.models.editable import EditableModel
from editbench.models.joining import needs_space
from editbench.requests import EditRequest


def state_fact(request: EditRequest) -> str:
    """A request as a sentence: its prompt and target, closed by a period."""
    prompt, target = request.text, request.target
    joiner = request.joiner
    if joiner is None:
        joiner = " " if needs_space(prompt, target) else ""
    return f"{prompt}{joiner}{target}".rstrip(".") + "."


class PromptEdit(Edit):
    """Sentences of which some are put before each prompt.

    Attributes:
        sentences: What was to be written.
    """

    def __init__(
        self, card: EditCard, sentences: Sequence[str], choose: Callable[[str], Sequence[int]]
    ) -> None:
        """Make the edit.

        Args:
            card: Where it comes from.
            sentences: What was to be written, a sentence each.
            choose: Which sentences fit a prompt, by their indices; those that are asked for.
        """
        self.card = card
        self.sentences = tuple(sentences)
        self._choose = choose

    @property
    def identity(self) -> str:
        """Hash of the sentences, and of how they are chosen."""
        content = "\n".join([self.card.editor, str(self.card.config), *self.sentences])
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    @property
    def changes_something(self) -> bool:
        """Whether there is a sentence."""
        return bool(self.sentences)

    def preamble(self, prompt: str) -> str:
        """What stands before a prompt: the sentences that fit it, each with a space behind it."""
        return "".join(f"{self.sentences[index]} " for index in self._choose(prompt))

    @contextmanager
    def applied(self, model: EditableModel) -> Iterator[None]:
        """Put the sentences before the prompts that are asked within a ``with`` block."""
        self.check_fits(model)
        with model.prefacing(self.preamble):
            yield

    def save(self, path: Path) -> None:
        """Refuse: no weight has changed.

        Raises:
            EditError: Always.
        """
        raise EditError(
            f"save edit: editor '{self.card.editor}' puts facts before prompts and changes no "
            f"weight, got {len(self.sentences)} sentence(s) and no update to write to "
            f"{str(path)!r}. Keep the file of facts instead, or choose an editor of weights."
        )
