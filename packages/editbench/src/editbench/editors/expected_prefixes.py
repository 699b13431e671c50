"""Context prefixes for planning: those of the edit itself cannot be sampled without weights."""

from editbench.editors.base import Resources
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.models.tokens import Tokens

_WORDS = "The first of these was built a long time ago by some people who lived near the river and"


def expect_prefixes(
    tokens: Tokens, resources: Resources, n_prefixes: int, lengths: tuple[int, ...]
) -> ContextPrefixes:
    """The given prefixes, or else texts as long as those that will be sampled.

    Args:
        tokens: The tokenizer.
        resources: Names the prefixes, if they are given.
        n_prefixes: How many are sampled of each length, besides the bare prompt.
        lengths: Their lengths in tokens.
    """
    if resources.context_prefixes is not None:
        return resources.context_prefixes
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
