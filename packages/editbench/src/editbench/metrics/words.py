"""Words and punctuation marks, by a rule that needs no data."""

import re

_ENDING = r"['’](?:s|m|d|ll|re|ve)\b"
# In this order: a number, with separators between its digits; an ending that is a word of its own;
# a word up to such an ending, hyphens and apostrophes inside it included; one and the same
# punctuation mark, any number of times.
_TOKEN = re.compile(
    r"\d+(?:[.,:]\d+)*(?!\w)"
    rf"|n['’]t\b|{_ENDING}"
    rf"|\w+?(?=n['’]t\b)|\w+(?:(?!{_ENDING})[-'’]\w+)*"
    r"|([^\w\s])\1*",
    flags=re.IGNORECASE,
)


def split_words(text: str) -> list[str]:
    """Split a text into words and punctuation marks.

    The rule is meant to count as `nltk.word_tokenize` does, without the data that that needs:

    - A word is a run of letters, digits and underscores; hyphens and apostrophes inside a word
      belong to it.
    - A number keeps the points, commas and colons between its digits.
    - The endings ``n't``, ``'s``, ``'m``, ``'d``, ``'ll``, ``'re`` and ``'ve`` are tokens of their
      own.
    - Any other character but white space is a token of its own; repetitions of it (``...``, ``--``)
      are one token.

    Where the two differ, it is nearly always in a period: nltk keeps it at abbreviations
    and wherever a sentence does not seem to end; here it is always a token. Case is kept.
    """
    return [match.group() for match in _TOKEN.finditer(text)]
