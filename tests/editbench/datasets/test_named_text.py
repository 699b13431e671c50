"""Sentences with names: the same for a seed, and nothing left to be filled in."""

import re
from itertools import islice

from editbench.datasets.corpus import prose_corpus
from editbench.datasets.named_text import write_texts


def test_a_seed_determines_them():
    texts = [tuple(islice(write_texts(seed), 20)) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) == 20


def test_everything_is_filled_in_with_the_right_article():
    text = " ".join(islice(write_texts(0), 300))
    assert not re.search(r"[{}|]", text)
    assert not re.search(r"\ban [bcdfghjklmnpqrstvwxyz]|\ba [aeio]", text)


def test_prose_has_names_between_its_paragraphs():
    texts = list(prose_corpus().texts())
    named = tuple(islice(write_texts(0), 4))
    assert (*texts[1:3], *texts[4:6]) == named
    assert texts == list(prose_corpus().texts())
    assert prose_corpus().fingerprint == prose_corpus().fingerprint
