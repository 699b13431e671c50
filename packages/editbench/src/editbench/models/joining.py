"""Whether a space belongs between a prompt and what follows it: writing, not tokens."""

import re
import unicodedata

# Characters of scripts that put no space between words, and full-width punctuation.
_UNSPACED_NAMES = (
    "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "THAI", "LAO",
    "KHMER", "MYANMAR", "TIBETAN",
)  # fmt: skip
# Of these, the scripts that set no space around digits and foreign words either.
_DENSE_NAMES = (
    "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO",
)  # fmt: skip

# What a word or number follows at once, whatever stands before: paths, addresses, hyphens (the
# Hebrew one too), the Arabic letter that prolongs a word, and characters that are not seen.
_ATTACHING = "/\\@^-\u2010\u2011\u05be\u0640\u00ad\u200b\u200c\u200d\u2060¿¡"
# What joins if it stands at a word, and stands alone otherwise: "AT&T" and "Marks & Spencer".
_ATTACHING_AT_WORDS = "&=–—"
# What may come in pairs around a word: the first of two opens.
_PAIRED = re.compile(r"(\*+|_+|`+|~+|\$+|\"|')\Z")

# The marks of chat templates, of whichever model: <|assistant|>, <｜Assistant｜>.
_ROLE_MARK = re.compile(r"<[|｜][^<>]+[|｜]>\Z")
_TAG = re.compile(r"(</|(?<!\w)<)([A-Za-z][\w:.-]*)(\s[^<>]*)?>\Z")
_INLINE_TAGS = frozenset({
    "a", "abbr", "b", "code", "del", "em", "i", "ins", "kbd", "mark", "q", "s", "small", "span",
    "strong", "sub", "sup", "u",
})  # fmt: skip

# French, Italian and Catalan words that lose their last vowel before another one.
_ELISION = re.compile(
    r"(?<!\w)([cdjlmnstvzo]|(jus|lors|puis|quoi|pres|quel)?qu|aujourd|entr|gl|d?all|[dn]ell|coll"
    r"|sull|(alc|ness|ciasc|qualc)?un|altr|anch|bell|com|cos|dov|grand|mezz|quand|quell|quest|sant"
    r"|senz|tutt)['’]\Z",
    flags=re.IGNORECASE,
)


def needs_space(prompt: str, body: str) -> bool:
    """Whether one space belongs between two texts, neither of which has it yet."""
    if not prompt or not body or prompt[-1].isspace() or body[0].isspace():
        return False
    if _closes(body) or _attaches(prompt, body):
        return False
    return not _is_unspaced_border(prompt, body)


def _closes(body: str) -> bool:
    """Whether the text starts with a closing bracket or tag, or a lone mark (not '.NET')."""
    first = body[0]
    is_full_width = _is_mark(first) and unicodedata.east_asian_width(first) in "WF"
    if is_full_width and unicodedata.category(first) not in ("Ps", "Pi"):
        return True
    if unicodedata.category(first) == "Pe" or body.startswith("</"):
        return True
    return first in ",;:.!?،؛؟।" and (len(body) == 1 or body[1].isspace())


def _attaches(prompt: str, body: str) -> bool:
    """Whether what ends the prompt holds on to what comes next."""
    last = prompt[-1]
    before = prompt[-2:-1]
    if unicodedata.category(last) in ("Ps", "Pi") or last in _ATTACHING:
        return True
    if _ROLE_MARK.search(prompt):
        return True
    if tag := _TAG.search(prompt):
        return not (tag[1] == "</" and tag[2].lower() in _INLINE_TAGS)
    if last in _ATTACHING_AT_WORDS:
        return bool(before) and not before.isspace()
    if last == "#":  # a number sign or a tag, but not the language C#
        return not before.isalpha() or body[0].isdigit()
    if last == "+":
        return body[0].isdigit() and not before.strip()
    if last == "." and re.search(r"(?<!\w)www\.\Z", prompt, flags=re.IGNORECASE):
        return True
    if last == "$" and body[0].isdigit():
        return True
    if unicodedata.category(last) == "Sc" and last != "$":  # "£5", but "5 £ a month"
        return body[0].isdigit() or not prompt[:-1].rstrip()[-1:].isdigit()
    if mark := _PAIRED.search(prompt):
        return _opens(prompt[: mark.start()], mark[1])
    return last == "’" and "‘" not in prompt and _ELISION.search(prompt) is not None


def _opens(before: str, mark: str) -> bool:
    """Whether a mark that comes in pairs opens, after what stands before it."""
    if _is_open(before):
        return True
    if mark == '"':
        return False  # it closes, whatever it may have been that opened it
    if any(_is_open(before[: found.start()]) for found in _standing(mark, before)):
        return False
    if mark == "'":
        return _ELISION.search(f"{before}'") is not None
    return mark != "$" or not before.rstrip()[-1:].isdigit()


def _is_open(before: str) -> bool:
    """Whether a word may begin behind a text: at its start, after a space or an opening mark."""
    if not before or before[-1].isspace():
        return True
    if before[-1] in "\"'*_`~":
        return _is_open(before[:-1])
    return unicodedata.category(before[-1]) in ("Ps", "Pi") or before[-1] in "¿¡"


def _standing(mark: str, text: str) -> list[re.Match[str]]:
    """Where the very mark stands in a text, with something visible behind it."""
    return list(
        re.finditer(
            rf"(?<!{re.escape(mark[0])}){re.escape(mark)}(?![\s{re.escape(mark[0])}])", text
        )
    )


def _is_unspaced_border(prompt: str, body: str) -> bool:
    """Whether two texts meet in a script that puts no space there."""
    if _is_of(_UNSPACED_NAMES, prompt[-1]) and _is_of(_UNSPACED_NAMES, body[0]):
        return True
    if prompt[-1] in ",;:.!?":
        return False
    letters = [character for character in body if character.isalpha()]
    goes_on_dense = bool(letters) and _is_of(_DENSE_NAMES, letters[0])
    if _is_of(_DENSE_NAMES, prompt[-1]):
        return goes_on_dense or _is_dense(prompt)
    return _is_of(_DENSE_NAMES, body[0]) and _is_dense(prompt)


def _is_dense(prompt: str) -> bool:
    """Whether the end of a text is written without spaces, not only a name in other writing."""
    words = prompt.split()
    last = [character for character in words[-1] if character.isalnum()]
    dense = [_is_of(_DENSE_NAMES, character) for character in last]
    if not any(dense):
        return False
    if not all(dense) or len(words) == 1:
        return True
    return any(_is_of(_DENSE_NAMES, character) for character in words[-2])


def _is_of(names: tuple[str, ...], character: str) -> bool:
    if _is_mark(character):
        return unicodedata.east_asian_width(character) in "WF"
    return unicodedata.name(character, "").startswith(names)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("P")
