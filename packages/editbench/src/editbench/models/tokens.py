"""Text to tokens and back, with the three rules that editing depends on.

* The subject's last token is found by character offsets in the tokenization of the whole text.
* A continuation gets the space that its prompt needs, and never a beginning-of-sequence token.
* Padding is made here: neither a tokenizer's padding side nor its truncation setting is heard.
"""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from typing import Literal

import torch
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from editbench.errors import ModelError, RequestError

# Characters of scripts that put no space between words, and full-width punctuation.
_UNSPACED_NAMES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


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
        """Copy a tokenizer.

        Args:
            tokenizer: A fast tokenizer of transformers.

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
        self._last: tuple[str, Encoding] | None = None
        self._n_base = self._backend.get_vocab_size(with_added_tokens=False)
        self._opening = self._find_opening()
        definition = self._backend.to_str() + json.dumps(self._opening)
        self.fingerprint = hashlib.blake2b(definition.encode(), digest_size=16).hexdigest()
        self.vocab_size = self._backend.get_vocab_size(with_added_tokens=True)
        self.pad_id = 0

    def encode(self, text: str) -> list[int]:
        """Tokenize a text from its beginning.

        Returns:
            Token ids, after a beginning-of-sequence token iff the tokenizer adds one on its own;
            never with an end-of-sequence token.
        """
        return [*self._opening, *self._tokenize(text).ids]

    def encode_continuation(self, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokenize a prompt together with what follows it.

        Their concatenation is the tokenization of ``join(prompt, continuation)``; the continuation
        starts with the first token that reaches beyond the prompt, so the joining space is its.
        For byte-level BPE this is the same as tokenizing the prompt and ``" " + continuation``
        apart.

        Returns:
            The prompt's ids (with what `encode` puts in front) and the continuation's.

        Raises:
            RequestError: Either part has no token.
        """
        encoding = self._tokenize(self.join(prompt, continuation))
        # A prompt that ends in the joining space hands it over.
        end = len(prompt) - 1 if prompt.endswith(" ") else len(prompt)
        first = next(
            (index for index, (_, stop) in enumerate(encoding.offsets) if stop > end),
            len(encoding.ids),
        )
        prompt_ids = [*self._opening, *encoding.ids[:first]]
        continuation_ids = encoding.ids[first:]
        if not continuation_ids:
            raise RequestError(
                f"continuation: no token is left of it after the prompt {prompt!r}, "
                f"got {continuation!r}. Give a continuation with visible characters."
            )
        if not prompt_ids:
            raise RequestError(
                f"continuation: no token precedes it, got prompt {prompt!r} and continuation "
                f"{continuation!r}. Give a prompt."
            )
        return prompt_ids, continuation_ids

    def join(self, prompt: str, continuation: str) -> str:
        """Put a continuation after a prompt, with one space between them where one belongs.

        Leading spaces of the continuation do not count. No space is added after white space, an
        opening bracket or an opening quote, between characters of scripts that are written
        without spaces, before a lone punctuation mark or a closing bracket, or after an empty
        prompt.
        """
        body = continuation.lstrip(" ")
        return f"{prompt} {body}" if _needs_space(prompt, body) else f"{prompt}{body}"

    def locate(self, text: str, start: int, end: int) -> int:
        """Find the last token of a span of characters: the subject's last token.

        Where one character is spread over several tokens (byte-level BPE, byte fallback), the last
        of them is meant. White space around the span does not count, so the token that follows a
        subject is never taken for its own.

        Args:
            text: The whole text.
            start: First character of the span.
            end: One past its last character.

        Returns:
            The index, in ``encode(text)``, of the last token that overlaps the span.

        Raises:
            RequestError: The span is empty, lies outside the text, or has no token.
        """
        return self.locate_all(text, start, end)[-1]

    def locate_all(self, text: str, start: int, end: int) -> range:
        """Find the tokens of a span of characters: all of the subject's.

        A token that lies partly in the span is one of them; for the rest see `locate`.

        Args:
            text: The whole text.
            start: First character of the span.
            end: One past its last character.

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
        start += len(span) - len(span.lstrip())
        end -= len(span) - len(span.rstrip())
        found = [
            index
            for index, (first, stop) in enumerate(self._tokenize(text).offsets)
            if first < end and stop > start
        ]
        if not found:
            raise RequestError(
                f"locating a subject: the tokenizer has no token for {text[start:end]!r} in "
                f"{text!r}. Choose another subject or model."
            )
        return range(len(self._opening) + found[0], len(self._opening) + found[-1] + 1)

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

    @property
    def opening(self) -> tuple[int, ...]:
        """What `encode` puts before every text: a beginning-of-sequence token, or nothing."""
        return self._opening

    @property
    def largest_id(self) -> int:
        """The largest id of the vocabulary proper, without added tokens."""
        return max(self._backend.get_vocab(with_added_tokens=False).values())

    def _tokenize(self, text: str) -> Encoding:
        # A text's tokens are asked for and then its subject is located: once is enough.
        if self._last is None or self._last[0] != text:
            self._last = (text, self._backend.encode(text, add_special_tokens=False))
        return self._last[1]

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


def _needs_space(prompt: str, body: str) -> bool:
    if not prompt or not body or prompt[-1].isspace() or body[0].isspace():
        return False
    if _opens(prompt) or _closes(body):
        return False
    return not (_is_unspaced(prompt[-1]) and _is_unspaced(body[0]))


def _opens(prompt: str) -> bool:
    """Whether the last character is an opening bracket or an opening quote."""
    last = prompt[-1]
    if last in "\"'":  # a straight quote opens where a word may begin, and closes elsewhere
        return len(prompt) == 1 or prompt[-2].isspace() or _opens(prompt[:-1])
    return unicodedata.category(last) in ("Ps", "Pi") or last in "¿¡"


def _closes(body: str) -> bool:
    """Whether the text starts with a closing bracket or a lone punctuation mark (not '.NET')."""
    if unicodedata.category(body[0]) == "Pe":
        return True
    return body[0] in ",;:.!?" and (len(body) == 1 or body[1].isspace())


def _is_unspaced(character: str) -> bool:
    if unicodedata.category(character).startswith("P"):
        return unicodedata.east_asian_width(character) in "WF"
    return unicodedata.name(character, "").startswith(_UNSPACED_NAMES)
