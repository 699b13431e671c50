"""Invented names, as many as a world needs.

A name is two words out of shared pools, so that no single token tells who is meant: a model has to
put a subject together before it can say anything about it. Pools grow with the square root of the
number of names, which keeps both words ambiguous in a world of any size.
"""

import math
import random

from editbench.atlas.relations import CITIES, COUNTRIES, LANGUAGES, PUBLISHERS, Kind

UNUSUAL_ONSETS = ("zh", "vr", "vl", "kv", "dv", "thr", "gw", "sv", "tl", "mr", "dz", "zv", "kh")
"""Every invented word has a syllable that begins with one of these, as hardly a real name does."""

_PLAIN_ONSETS = ("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z",
                 "br", "dr", "gr", "st", "tr")  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "l", "n", "r", "s", "m", "th", "k")

_PLACE_WORDS = ("Port", "Mount", "Lake", "Fort", "New", "Lower", "East", "West")
_COMPANY_WORDS = ("Group", "Systems", "Works", "Partners", "Trust", "Brothers", "Union", "Supply")
_WORK_WORDS = ("Shadow", "House", "Return", "Garden", "Secret", "Voyage", "Winter", "Children")

_SPREAD = 8  # words are drawn from pools that could name this many times the subjects needed


def _invent_word(rng: random.Random, n_syllables: int) -> str:
    unusual = rng.randrange(n_syllables)
    syllables = [
        rng.choice(UNUSUAL_ONSETS if index == unusual else _PLAIN_ONSETS)
        + rng.choice(_VOWELS)
        + (rng.choice(_CODAS) if index in (0, n_syllables - 1) else "")
        for index in range(n_syllables)
    ]
    return "".join(syllables).capitalize()


class NameSource:
    """Invents names of subjects; no word serves two purposes, no name is given twice."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"atlas/{seed}/names")
        objects = (*COUNTRIES, *LANGUAGES, *CITIES, *PUBLISHERS)
        self._taken = {word for name in objects for word in name.split()}

    def invent(self, kind: Kind, n: int) -> list[str]:
        """Invent names for `n` subjects of a kind."""
        if kind == "person":
            n_given = max(4, math.ceil(math.sqrt(_SPREAD * n * 0.75)))
            given = self._invent_pool(n_given)
            family = self._invent_pool(max(4, math.ceil(_SPREAD * n / n_given)))
            pairs = [(one, two) for one in given for two in family]
            return [f"{one} {two}" for one, two in self._rng.sample(pairs, n)]
        roots = self._invent_pool(max(4, math.ceil(n / 5)))
        if kind == "place":
            pairs = [(word, root) for word in _PLACE_WORDS for root in roots]
        elif kind == "company":
            pairs = [(root, word) for word in _COMPANY_WORDS for root in roots]
        else:
            pairs = [(f"{word} of", root) for word in _WORK_WORDS for root in roots]
        return [f"{one} {two}" for one, two in self._rng.sample(pairs, n)]

    def invent_aliases(self, n: int) -> list[str]:
        """Invent second names of one word each, for `n` subjects of any kind."""
        return self._invent_pool(n)

    def _invent_pool(self, n: int) -> list[str]:
        # Two syllables give some 800,000 words; a pool that would crowd them gets a third.
        n_syllables = 2 if n < 20_000 else 3
        pool: list[str] = []
        while len(pool) < n:
            word = _invent_word(self._rng, n_syllables)
            if word not in self._taken:
                self._taken.add(word)
                pool.append(word)
        return pool
