"""A chat template: what goes around a user's message before a model gets it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from editbench.errors import RequestError

_ANY_MESSAGE = "⸻⸻"  # no template has it by itself


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template.

    Attributes:
        source: The template.
        special_tokens: The tokens that it may name.
    """

    source: str
    special_tokens: dict[str, Any]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Self | None:
        """The template of a tokenizer, or the default one of several; None if it has none."""
        source = tokenizer.chat_template
        if isinstance(source, dict):
            source = source.get("default")
        return cls(source, dict(tokenizer.special_tokens_map)) if source else None

    def render(self, message: str) -> tuple[str, int]:
        """Write down a conversation that a message begins, up to where the answer is to begin.

        Returns:
            The text, and where the message stands in it.

        Raises:
            RequestError: The template fails, or changes the message.
        """
        text = self._render(message)
        header = self._render(_ANY_MESSAGE).partition(_ANY_MESSAGE)[0]
        # Many templates take away the space around a message.
        for kept in (message, message.strip()):
            if text.startswith(header + kept):
                return text, len(header) - message.index(kept)
        raise RequestError(
            "chat: the model's chat template does not keep the message as it stands, got "
            f"{message!r}, which becomes {text!r}. Word it otherwise."
        )

    def header_without(self, tokens: Iterable[str]) -> str:
        """What the template puts before a message, less `tokens`; nothing where it fails."""
        header = self._header
        for token in tokens:
            header = header.replace(token, "")
        return header.strip()

    @cached_property
    def _header(self) -> str:
        try:
            return self._render(_ANY_MESSAGE).partition(_ANY_MESSAGE)[0]
        except RequestError:
            return ""

    @cached_property
    def joiner(self) -> str:
        """White space that the template puts before an answer, behind what `render` gives."""
        try:
            answered = self._render(_ANY_MESSAGE, answer=_ANY_MESSAGE)
        except RequestError:  # it writes down no answers
            return ""
        before = answered.rpartition(_ANY_MESSAGE)[0]
        # Other things may stand there, such as empty thoughts: they belong to the answer.
        between = before.removeprefix(self._render(_ANY_MESSAGE))
        return between if between.isspace() else ""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what goes around a message, which may depend on the day."""
        text = self._render(_ANY_MESSAGE) + self.joiner
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _render(self, message: str, answer: str | None = None) -> str:
        conversation = [{"role": "user", "content": message}]
        if answer is not None:
            conversation.append({"role": "assistant", "content": answer})
        try:
            rendered = render_jinja_template(
                [conversation],
                chat_template=self.source,
                add_generation_prompt=answer is None,
                **self.special_tokens,
            )
        except Exception as error:  # a template is a program
            raise RequestError(
                f"chat: the model's chat template fails, got {' '.join(str(error).split())} for "
                f"the message {message!r}. Mend the template, or leave out 'chat'."
            ) from error
        return rendered[0][0]
