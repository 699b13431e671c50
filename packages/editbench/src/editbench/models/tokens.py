"""Text to tokens and back, with the rules that editing depends on.

* A prompt has the tokens that it has when a user sends it, whatever follows; what follows has the
  tokens that can come after these.
* The subject's last token is found by character offsets among the prompt's own tokens.
* A continuation gets the space that its prompt needs, and never a beginning-of-sequence token.
* A text has one beginning: neither what it brings itself nor what a chat template puts before it is
  put there again.
* Padding is made here: neither a tokenizer's padding side nor its truncation setting is heard.
"""

import copy
import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from editbench.errors import ModelError, RequestError, shown
from editbench.models.chat_template import ChatTemplate
from editbench.models.joining import needs_space
from editbench.questions import Score

# Texts to put before a continuation so that it is tokenized as in the midst of one. None of them
# may grow together with it, so there are several of different kinds.
_LEADS = ("", "\n", "|", "。", "a", "ж", "0")
# The special tokens that libraries ask a tokenizer for by name.
_MARKS = ("bos_token", "eos_token", "pad_token", "unk_token")
# What role marks and the like look like where a tokenizer does not call them special.
_LOOKS_SPECIAL = re.compile(r"[<\[]\S+[>\]]")


class Tokens:
    """A fast tokenizer, reduced to what an editor and its questions need.

    The tokenizer is copied: what happens to the original afterwards changes nothing here, and
    nothing that happens here changes the original.

    Attributes:
        fingerprint: Hash of everything that decides how text becomes tokens, as hex digits.
        vocab_size: Number of tokens, added ones included.
        pad_id: The id that fills padding; any id would do, since padding is masked.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Copy a fast tokenizer of transformers.

        Raises:
            ModelError: The tokenizer is not a fast one, so it has no character offsets.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                "tokenizer: character offsets need a fast tokenizer, got "
                f"{type(tokenizer).__name__}. Convert it once (AutoTokenizer.from_pretrained with "
                "sentencepiece installed, then save_pretrained) and use the saved folder."
            )
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._recent: dict[str, Encoding] = {}
        self._surplus: _Surplus | None = None
        self._chat = ChatTemplate.of(tokenizer)
        self._marks = {
            name: str(token)
            for name in _MARKS
            if (token := getattr(tokenizer, name, None)) is not None
        }
        self._n_base = self._backend.get_vocab_size(with_added_tokens=False)
        self._special = self._find_special()
        self._opening = self._find_opening()
        definition = self._backend.to_str() + json.dumps(self._opening)
        self.fingerprint = hashlib.blake2b(definition.encode(), digest_size=16).hexdigest()
        self.vocab_size = self._backend.get_vocab_size(with_added_tokens=True)
        self.pad_id = 0

    def encode(self, text: str, *, chat: bool = False) -> list[int]:
        """Tokenize a text from its beginning.

        With `chat` the text is a user's message, and the chat template goes around it.

        Returns:
            Token ids, after a beginning-of-sequence token iff the tokenizer adds one on its own;
            one alone if the text begins with one itself, and with a chat template the one that it
            puts there. Never with an end-of-sequence token behind the text.

        Raises:
            RequestError: There is no chat template, or it fails; the embedding lacks a token.
        """
        laid = self._lay_out(text, chat)
        return [*laid.opening, *laid.encoding.ids]

    def encode_question(self, question: Score) -> tuple[list[int], list[int]]:
        """`encode_continuation` of a question."""
        return self.encode_continuation(
            question.prompt, question.continuation, joiner=question.joiner, chat=question.chat
        )

    def encode_continuation(
        self, prompt: str, continuation: str, *, joiner: str | None = None, chat: bool = False
    ) -> tuple[list[int], list[int]]:
        """Tokenize a prompt, and what follows it.

        The prompt's tokens are those of `encode`: what a model is given by whoever asks. Where the
        tokens of both together begin with these, the rest of them are the continuation's. Where
        they do not, the prompt's end grows together with what follows (出生在 + 中国 may become
        出生|在中国), or the prompt ends in a space that belongs to the next token; then the
        continuation's tokens are those that the remaining text has in the midst of a text. Prompt
        and continuation always spell the text that joins them.

        Args:
            prompt: What comes first.
            continuation: What follows.
            joiner: What stands between them; see `join`.
            chat: Whether the prompt is a user's message, and the continuation the beginning of the
                answer. Then what the template puts there joins them, as after ``[/INST]``.

        Returns:
            The prompt's ids (with what `encode` puts in front) and the continuation's.

        Raises:
            RequestError: Either part has no token, or the continuation cannot follow the prompt's
                tokens; or as for `encode`.
        """
        laid = self._lay_out(prompt, chat)
        if chat and joiner is None and self._chat is not None:
            joiner = self._chat.joiner
        joined = self.join(laid.text, continuation, joiner)
        prompt_ids = [*laid.opening, *laid.encoding.ids]
        if not prompt_ids:
            raise RequestError(
                f"continuation: no token precedes it, got prompt {prompt!r} and continuation "
                f"{continuation!r}. Give a prompt."
            )
        own, whole = laid.encoding.ids, self._tokenize(joined).ids
        if whole[: len(own)] == own:
            following: list[int] | None = whole[len(own) :]
        else:
            following = self._find_following(own, joined[len(laid.text) :], whole)
        if following is None:
            raise RequestError(
                f"continuation: it has no tokens that can follow those of the prompt {prompt!r}, "
                f"got {continuation!r}. Move the border between the two, or choose another joiner."
            )
        if not following:
            raise RequestError(
                f"continuation: no token is left of it after the prompt {prompt!r}, "
                f"got {continuation!r}. Give a continuation with visible characters."
            )
        return prompt_ids, following

    def join(self, prompt: str, continuation: str, joiner: str | None = None) -> str:
        """Put a continuation after a prompt, with one space between them where one belongs.

        Leading spaces of the continuation do not count. No space is added after white space, after
        a special token, an opening bracket, quote, mark or tag, after what is a part of the next
        word (``https://``, ``nora@``, ``nell'``), where both meet in a script that is written
        without spaces, before a lone punctuation mark, a closing bracket or tag, or after an empty
        prompt.

        Where a `joiner` is given, it stands between the two instead.
        """
        body = continuation.lstrip(" ")
        if joiner is None:
            is_apart = not prompt.endswith(self._special) and needs_space(prompt, body)
            joiner = " " if is_apart else ""
        return f"{prompt}{joiner}{body}"

    def has_header(self, text: str) -> bool:
        """Whether a text has a special token in it, or the chat template's header (``[INST]``)."""
        header = "" if self._chat is None else self._chat.header_without(self._special)
        return any(mark in text for mark in (*self._special, header) if mark)

    def locate(self, text: str, start: int, end: int, *, chat: bool = False) -> int:
        """Find the last token of a span of characters: the subject's last token.

        Where one character is spread over several tokens (byte-level BPE, byte fallback), the last
        of them is meant. White space around the span does not count, so the token that follows a
        subject is never taken for its own. Arguments and errors are those of `locate_all`.

        Returns:
            The index, in ``encode(text)``, of the last token that overlaps the span.
        """
        return self.locate_all(text, start, end, chat=chat)[-1]

    def locate_all(self, text: str, start: int, end: int, *, chat: bool = False) -> range:
        """Find the tokens of a span of characters: all of the subject's.

        A token that lies partly in the span is one of them; for the rest see `locate`.

        Args:
            text: The whole text.
            start: First character of the span.
            end: One past its last character.
            chat: Whether it is a user's message; see `encode`.

        Returns:
            The indices, in ``encode(text)``, of the tokens that overlap the span.

        Raises:
            RequestError: The span is empty, lies outside the text, or has no token.
        """
        span = text[start:end] if 0 <= start <= end <= len(text) else ""
        if not span.strip():
            raise RequestError(
                f"locating a subject: the span has no visible character, got [{start}, {end}) in "
                f"{text!r}."
            )
        laid = self._lay_out(text, chat)
        start += laid.shift + len(span) - len(span.lstrip())
        end += laid.shift - (len(span) - len(span.rstrip()))
        found = [
            index
            for index, (first, stop) in enumerate(laid.encoding.offsets)
            if first < end and stop > start
        ]
        if not found:
            raise RequestError(
                f"locating a subject: the tokenizer has no token for {span.strip()!r} in "
                f"{text!r}. Choose another subject or model."
            )
        return range(len(laid.opening) + found[0], len(laid.opening) + found[-1] + 1)

    def decode(self, ids: Sequence[int]) -> str:
        """Turn tokens into text; special tokens are left out."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def pad(
        self, sequences: Sequence[Sequence[int]], side: Literal["right", "left"]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Lay sequences of unequal length side by side.

        Args:
            sequences: At least one sequence of token ids, none of them empty.
            side: Where the padding goes.

        Returns:
            Three long tensors ``[n, width]``: input ids, attention mask (1 on tokens), and position
            ids that count each sequence's own tokens from 0.
        """
        shape = (len(sequences), max(len(sequence) for sequence in sequences))
        ids = torch.full(shape, self.pad_id, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            begin = shape[1] - len(sequence) if side == "left" else 0
            ids[row, begin : begin + len(sequence)] = torch.tensor(sequence, dtype=torch.long)
            mask[row, begin : begin + len(sequence)] = 1
        return ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0)

    def to_transformers(self) -> PreTrainedTokenizerFast:
        """A tokenizer of transformers with these tokens, for libraries that work with one.

        It is a new one each time, so that what such a library sets on it stays there. It has no
        chat template.
        """
        backend = Tokenizer.from_str(self._backend.to_str())
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, clean_up_tokenization_spaces=False, **self._marks
        )

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be asked."""
        return self._chat is not None

    @property
    def opening(self) -> tuple[int, ...]:
        """What `encode` puts before every text: a beginning-of-sequence token, or nothing."""
        return self._opening

    @property
    def largest_id(self) -> int:
        """The largest id of the vocabulary proper, without added tokens."""
        return max(self._backend.get_vocab(with_added_tokens=False).values())

    def fingerprint_of(self, *, chat: bool) -> str:
        """The fingerprint, and where messages are asked also that of the chat template."""
        if not chat or self._chat is None:
            return self.fingerprint
        return f"{self.fingerprint} {self._chat.fingerprint}"

    def within(self, n_rows: int, model_name: str, part: str) -> Self:
        """These tokens for a model that may lack the last of them, as after `add_tokens`.

        Args:
            n_rows: How many tokens the model has.
            model_name: The model, for the message.
            part: Where it lacks them, for the message: ``embedding``.

        Returns:
            Tokens that refuse a text for which the model lacks a token, with a `RequestError`.
        """
        largest = max(self._backend.get_vocab(with_added_tokens=True).values())
        limited = copy.copy(self)
        limited._recent = {}
        limited._surplus = None if largest < n_rows else _Surplus(n_rows, model_name, part)
        return limited

    def _lay_out(self, text: str, chat: bool) -> "_LaidOut":
        shift = 0
        if chat:
            if self._chat is None:
                raise RequestError(
                    f"chat: the model's tokenizer has no chat template, got the message {text!r}. "
                    "Leave out 'chat', or use a model that was tuned to chat."
                )
            text, shift = self._chat.render(text)
        encoding = self._tokenize(text)
        begins = chat or encoding.ids[: len(self._opening)] == list(self._opening)
        return _LaidOut(text, shift, () if begins else self._opening, encoding)

    def _tokenize(self, text: str) -> Encoding:
        # A text's tokens are asked for, its subject is located, and one continuation after the
        # other put behind it: once is enough.
        if (found := self._recent.pop(text, None)) is None:
            found = self._encode(text)
        self._recent[text] = found
        if len(self._recent) > 2:
            del self._recent[next(iter(self._recent))]
        return found

    def _encode(self, text: str) -> Encoding:
        encoding = self._backend.encode(text, add_special_tokens=False)
        if self._surplus is not None:
            self._refuse_surplus(text, [*self._opening, *encoding.ids], self._surplus)
        return encoding

    def _refuse_surplus(self, text: str, ids: Sequence[int], surplus: "_Surplus") -> None:
        for token in ids:
            if token >= surplus.n_rows:
                raise RequestError(
                    f"model '{surplus.model_name}': the tokenizer has {self.vocab_size} tokens, "
                    f"the {surplus.part} {surplus.n_rows} rows; got text {shown(text)}, which uses "
                    f"{token} ({self._backend.id_to_token(token)!r}). Resize the embeddings "
                    "(resize_token_embeddings) and save the model, or leave this token out."
                )

    def _find_following(
        self, prompt_ids: list[int], rest: str, whole: Sequence[int]
    ) -> list[int] | None:
        """The tokens of `rest` in the midst of a text; None if with the prompt's they misspell it.

        A tokenizer may put a mark before a text's first word, or a mark on a word's later parts: so
        the rest is tokenized by itself, then behind something that it does not grow together with.
        """
        for lead in _LEADS:
            before, both = self._encode(lead).ids, self._encode(f"{lead}{rest}").ids
            following = both[len(before) :]
            if both[: len(before)] == before and self._spell_alike(prompt_ids + following, whole):
                return following
        return None

    def _spell_alike(self, ids: Sequence[int], others: Sequence[int]) -> bool:
        def spell(some: Sequence[int]) -> str:
            if self._backend.decoder is None:  # decoding would put spaces between all tokens
                return "".join(self._backend.id_to_token(token) or "" for token in some)
            return self._backend.decode(list(some), skip_special_tokens=False)

        # What the two parts spell may have an accent apart that was one with its letter.
        return unicodedata.normalize("NFC", spell(ids)) == unicodedata.normalize(
            "NFC", spell(others)
        )

    def _find_special(self) -> tuple[str, ...]:
        """Tokens that are no part of any word: those of chat headers, and the like."""
        added = self._backend.get_added_tokens_decoder().values()
        return tuple(
            token.content
            for token in added
            if (token.special or _LOOKS_SPECIAL.fullmatch(token.content))
            and not (token.content[-1].isalnum() or token.content[-1].isspace())
        )

    def _find_opening(self) -> tuple[int, ...]:
        """The tokens that the post-processor puts before a text on its own."""
        for probe in ("a", *(self._backend.id_to_token(i) or "" for i in range(self._n_base))):
            bare = self._tokenize(probe).ids
            if bare:
                wrapped = self._backend.encode(probe, add_special_tokens=True).ids
                starts = range(len(wrapped) - len(bare) + 1)
                return tuple(
                    wrapped[: next(i for i in starts if wrapped[i : i + len(bare)] == bare)]
                )
        raise ModelError("tokenizer: no text has a token, got an empty vocabulary.")


@dataclass(frozen=True, slots=True)
class _LaidOut:
    """A text as it is tokenized: the chat template's, where it is a message."""

    text: str
    shift: int  # where the message stands in it
    opening: tuple[int, ...]
    encoding: Encoding


@dataclass(frozen=True, slots=True)
class _Surplus:
    """A model that has fewer tokens than its tokenizer."""

    n_rows: int
    model_name: str
    part: str
