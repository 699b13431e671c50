"""Facts that stand before the questions that they fit: an edit of prompts, not of weights."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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


WordingName = Literal["sentence", "new-fact", "instruction"]


@dataclass(frozen=True, slots=True)
class Wording:
    """How facts are told before a prompt.

    Attributes:
        opening: What stands before all facts.
        before_fact: What stands before each.
        after_fact: What stands behind each.
        closing: What stands between the facts and the prompt.
    """

    opening: str = ""
    before_fact: str = ""
    after_fact: str = " "
    closing: str = ""

    def tell(self, facts: Sequence[str]) -> str:
        """All that stands before a prompt; nothing if there is no fact."""
        if not facts:
            return ""
        told = "".join(f"{self.before_fact}{fact}{self.after_fact}" for fact in facts)
        return f"{self.opening}{told}{self.closing}"


WORDINGS: Mapping[WordingName, Wording] = {
    "sentence": Wording(),
    "new-fact": Wording("", "New Fact: ", "\n", "Prompt: "),
    "instruction": Wording(
        "Answer by these facts, which are new:\n", "New Fact: ", "\n", "Prompt: "
    ),
}
"""Facts as a text would have them; as IKE words them (Zheng et al. 2023), without its solved
examples; and so with an instruction before them."""


@dataclass(frozen=True, slots=True)
class Preface:
    """Sentences of which some are put before each prompt.

    Attributes:
        sentences: What was to be written, a sentence each.
        choose: Which sentences fit a prompt, by their indices; those that are asked for.
        wording: How they are told.
    """

    sentences: tuple[str, ...]
    choose: Callable[[str], Sequence[int]]
    wording: WordingName

    def __call__(self, prompt: str) -> str:
        """What stands before a prompt: the sentences that fit it, as they are worded."""
        return WORDINGS[self.wording].tell([self.sentences[each] for each in self.choose(prompt)])


class PromptEdit(Edit):
    """Sentences of which some are put before each prompt.

    Attributes:
        preface: What stands before a prompt.
    """

    def __init__(self, card: EditCard, preface: Preface) -> None:
        self.card = card
        self.preface = preface

    @property
    def identity(self) -> str:
        """Hash of the sentences, and of how they are chosen."""
        about = [self.card.editor, str(self.card.config), self.preface.wording]
        content = "\n".join([*about, *self.preface.sentences])
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    @property
    def changes_something(self) -> bool:
        """Whether there is a sentence."""
        return bool(self.preface.sentences)

    @contextmanager
    def applied(self, model: EditableModel) -> Iterator[None]:
        """Put the sentences before the prompts that are asked within a ``with`` block."""
        self.check_fits(model)
        with model.prefacing(self.preface):
            yield

    def save(self, path: Path) -> None:
        """Refuse: no weight has changed.

        Raises:
            EditError: Always.
        """
        raise EditError(
            f"save edit: editor '{self.card.editor}' puts facts before prompts and changes no "
            f"weight, got {len(self.preface.sentences)} sentence(s) and no update to write to "
            f"{str(path)!r}. Keep the file of facts instead, or choose an editor of weights."
        )
