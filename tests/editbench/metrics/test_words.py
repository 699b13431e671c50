import pytest

from editbench.metrics.generation import split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n\t", []),
        ("Ana lives in São Paulo.", ["Ana", "lives", "in", "São", "Paulo", "."]),
        ("Yes, (no)? “maybe”!", ["Yes", ",", "(", "no", ")", "?", "“", "maybe", "”", "!"]),
        # Contractions and genitives are two words, whichever apostrophe they have.
        ("Don't! I can't; we'd've.",
         ["Do", "n't", "!", "I", "ca", "n't", ";", "we", "'d", "'ve", "."]),
        ("Ana's dogs' mother-in-law’s", ["Ana", "'s", "dogs", "'", "mother-in-law", "’s"]),
        ("O'Neill 'said' rock'n'roll", ["O'Neill", "'", "said", "'", "rock'n'roll"]),
        ("$1,000.50 at 12:30, 3rd of 1990s.",
         ["$", "1,000.50", "at", "12:30", ",", "3rd", "of", "1990s", "."]),
        ("so... -- no - well-", ["so", "...", "--", "no", "-", "well", "-"]),
        ("end.Begin", ["end", ".", "Begin"]),
        ("北京是首都。", ["北京是首都", "。"]),
    ],
)  # fmt: skip
def test_words_and_marks(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_nothing_but_white_space_is_lost() -> None:
    text = "Isn't it 'odd'—the 3.5% (or $4,000…) that O’Neill's e-mail mentions, e.g., twice?!"
    assert "".join(split_words(text)) == "".join(text.split())
