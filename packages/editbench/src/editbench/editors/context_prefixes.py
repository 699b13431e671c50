"""Context prefixes: texts put before a prompt, so that an edit holds in more than one context."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from editbench.errors import ConfigError, shown
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel, of_unedited
from editbench.models.tokens import Tokens
from editbench.questions import Generate, GenerateAnswer

_WORDS = "The first of these was built a long time ago by some people who lived near the river and"
_SEED_WORDS = ("The", "Therefore", "Because", "I", "You")


@dataclass(frozen=True, slots=True)
class ContextPrefixes:
    """Groups of prefixes; a prefix stands before the filled-in prompt as it is.

    Attributes:
        groups: ``""`` is the bare prompt. The reference has two groups, the bare prompt alone and
            five texts sampled from the model.
    """

    groups: tuple[tuple[str, ...], ...]

    @property
    def flat(self) -> tuple[str, ...]:
        """All prefixes in order, for z, which weighs them alike."""
        return tuple(chain.from_iterable(self.groups))

    def weights(self, weighting: str | float) -> tuple[float, ...]:
        """Weights of `flat` in the mean key; they sum to one.

        Args:
            weighting: ``grouped``, the mean of the groups' means, as the reference has it;
                ``uniform``, the paper's Eqn 19; or the bare prompt's share, beside which all others
                weigh alike. Where there is no bare prompt, or nothing else, all do.
        """
        texts = self.flat
        n_bare = texts.count("")
        if isinstance(weighting, float) and 0 < n_bare < len(texts):
            share, rest = weighting / n_bare, (1 - weighting) / (len(texts) - n_bare)
            return tuple(rest if text else share for text in texts)
        if weighting != "grouped":
            return (1 / len(texts),) * len(texts)
        return tuple(1 / (len(self.groups) * len(group)) for group in self.groups for _ in group)

    @classmethod
    def read(cls, path: Path) -> "ContextPrefixes":
        """Read a JSON list of lists of strings.

        Raises:
            ConfigError: The file is missing or holds something else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"context prefixes: cannot read {path}: {error}.") from error
        return cls.of(content, str(path))

    @classmethod
    def of(cls, content: Any, source: str) -> "ContextPrefixes":
        """Check groups that came from outside.

        Raises:
            ConfigError: They are not a list of non-empty lists of distinct strings.
        """
        if not _are_groups(content):
            raise ConfigError(
                f"context prefixes: malformed content in {source}, got {shown(content)}; "
                'expected a JSON list of groups of strings, such as [[""], ["I said. ", "So. "]].'
            )
        return cls(tuple(tuple(group) for group in content))


@of_unedited("context prefixes")
def sample_context_prefixes(
    model: EditableModel, *, n_prefixes: int, lengths: Sequence[int], seed: int
) -> ContextPrefixes:
    """Sample prefixes from the model itself, as the reference does, but with a seed.

    Args:
        model: The model. Edits on it are taken off meanwhile.
        n_prefixes: How many texts of each length; each starts with the next of five words.
        lengths: Tokens of the texts, their first word included.
        seed: Determines the texts; the global random state is not touched.

    Returns:
        The bare prompt as one group and the texts as another, each ending in ``". "``.
    """
    texts: list[str] = []
    for index, length in enumerate(lengths):
        for first in range(0, n_prefixes, len(_SEED_WORDS)):
            answers = answer_questions(
                model,
                [Generate(word, length) for word in _SEED_WORDS[: n_prefixes - first]],
                seed=seed + index * n_prefixes + first,
                token_budget=model.memory.tokens,
            )
            found = (each for each in answers.values() if isinstance(each, GenerateAnswer))
            texts += [" ".join(each.text.split()) + ". " for each in found]
    return ContextPrefixes((("",), tuple(dict.fromkeys(texts))) if texts else (("",),))


def expect_prefixes(
    tokens: Tokens, given: ContextPrefixes | None, n_prefixes: int, lengths: tuple[int, ...]
) -> ContextPrefixes:
    """The given prefixes, or else texts as long as those that will be sampled: for estimates.

    Args:
        tokens: The tokenizer.
        given: The prefixes, if they are given.
        n_prefixes: How many are sampled of each length, besides the bare prompt.
        lengths: Their lengths in tokens.
    """
    if given is not None:
        return given
    # Each begins otherwise, as sampled ones do: what they share is not run once for all of them.
    texts = [
        f"{index} {_write(tokens, length - 1)}. "
        for length in lengths
        for index in range(n_prefixes)
    ]
    return ContextPrefixes((("",), tuple(texts)) if texts else (("",),))


def _write(tokens: Tokens, length: int) -> str:
    """A text of about so many tokens."""
    words: list[str] = []
    while len(tokens.encode(" ".join(words))) < length:
        words.append(_WORDS.split()[len(words) % len(_WORDS.split())])
    return " ".join(words)


def _are_groups(content: Any) -> bool:
    def holds(part: Any, kind: type) -> bool:
        return isinstance(part, list) and bool(part) and all(isinstance(x, kind) for x in part)

    return holds(content, list) and all(holds(group, str) for group in content)
