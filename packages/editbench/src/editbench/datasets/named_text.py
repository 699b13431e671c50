"""Ordinary sentences that are full of names, put together from words."""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

_KIND = re.compile(r"\{(a )?(\w+)\}")
_N_SENTENCES = 3


def write_texts(seed: int) -> Iterator[str]:
    """Texts of a few sentences about invented people, places, works and firms, without end.

    Args:
        seed: Determines them.
    """
    path = Path(__file__).with_name("names.yaml")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    sentences = content.pop("sentences")
    words = {kind: listed.strip().split(", ") for kind, listed in content.items()}
    chance = random.Random(seed)

    def choose(kind: re.Match[str]) -> str:
        text = _KIND.sub(choose, chance.choice(words[kind[2]]))
        article = "" if kind[1] is None else "an " if text[0] in "aeiou" else "a "
        return article + text

    while True:
        yield " ".join(_KIND.sub(choose, one) for one in chance.sample(sentences, _N_SENTENCES))
