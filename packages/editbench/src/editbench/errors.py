"""Errors a user can mend, and how their messages are built.

Every message reads ``<operation>: <what is wrong>, got <value>[; expected <value>]. <what to do>``.
The command line turns an `EditbenchError` into one line on stderr and exit code 2; any other
exception is a defect and keeps its traceback.
"""

import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping

_SIMILAR = 0.6
"""How alike a slip and what was meant are, as `difflib` measures it: its own default."""

_NEAR = 0.85
"""How alike two names are of which one is almost certainly a slip of the other."""

_N_SHOWN = 80  # characters

_NEGATIONS = {"no", "not", "non", "without", "anti"}
_PREFIXES = {"", "un", "in", "im", "non", "dis", "de", "en", "ex", "anti"}


class EditbenchError(Exception):
    """Base of every error that bad input or a bad environment can cause."""


class DataError(EditbenchError):
    """A dataset, facts or corpus file cannot be read, or one of its records is malformed."""


class SubjectError(DataError):
    """A record does not say where in its prompt the subject stands."""


class ModelError(EditbenchError):
    """A model cannot be loaded, or its architecture offers no place to edit."""


class RequestError(EditbenchError):
    """An edit request is malformed or conflicts with another one."""


class ConfigError(EditbenchError):
    """An option, configuration file or combination of settings is invalid."""


class EditError(EditbenchError):
    """An edit cannot be computed, read, or put on this model."""


class DeviceMemoryError(EditbenchError):
    """A device has too little memory for the smallest piece of some work."""


class SecondMomentError(EditbenchError):
    """Second moments are missing, malformed, or belong to another model."""


class PluginError(EditbenchError):
    """A plugin cannot be loaded or breaks the contract of its hook."""


class RunError(EditbenchError):
    """A run folder cannot be created, resumed or read."""


class TraceError(EditbenchError):
    """Nothing can be traced, or a trace folder cannot be created, resumed or read."""


class UnknownNameError(EditbenchError):
    """A name that is not there; the message says what was meant, where that can be told.

    Args:
        kind: What it is a name of.
        name: The name.
        available: The names that are there.
        elsewhere: What names of other tools stand for: a name that is there, or why there is none.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        available: Iterable[str],
        *,
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.name = name
        self.available = sorted(available)
        suggestion = ""
        if known := (elsewhere or {}).get(name):
            is_there = known in self.available
            suggestion = f" Here it is called '{known}'." if is_there else f" Not used: {known}."
        elif nearest := find_nearest(name, self.available):
            suggestion = f" Did you mean '{nearest}'?"
        listing = ", ".join(self.available) or "none"
        super().__init__(f"unknown {kind} '{name}'.{suggestion} Available: {listing}.")


def shown(value: object) -> str:
    """`value` as a message shows it: on one line and not too long."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = _N_SHOWN
    return brief.repr(value)


def find_nearest(name: str, available: Iterable[str]) -> str | None:
    """The name that `name` is likely to be a slip of, if there is one.

    A slip of the pen changes letters of a word, or leaves out or adds one. Another word in its
    place, a negation or a prefix that turns a word around means something else: whoever follows
    such a suggestion does the opposite of what was wanted.
    """
    known = list(available)
    near = difflib.get_close_matches(name, known, n=max(1, len(known)), cutoff=_SIMILAR)
    return next((candidate for candidate in near if _is_slip(name, candidate)), None)


def is_near_miss(name: str, known: Iterable[str]) -> bool:
    """Whether a name can hardly be anything but a slip of one that is known."""
    return bool(difflib.get_close_matches(name, list(known), 1, _NEAR))


def _is_slip(name: str, meant: str) -> bool:
    said, words = (re.split(r"[\W_]+", each) for each in (name, meant))
    changes = difflib.SequenceMatcher(None, said, words, autojunk=False).get_opcodes()
    for kind, start, end, other_start, other_end in changes:
        one, other = "_".join(said[start:end]), "_".join(words[other_start:other_end])
        if kind == "equal":
            continue
        if not _NEGATIONS.isdisjoint(one.split("_") + other.split("_")):
            return False
        if kind == "replace" and not _is_slip_of_word(one, other):
            return False
    return True


def _is_slip_of_word(one: str, other: str) -> bool:
    shared = _count_shared_end(one, other)
    if {one[: len(one) - shared], other[: len(other) - shared]} <= _PREFIXES:
        return False
    n_different = sum(a != b for a, b in zip(one, other, strict=False))
    is_one_letter = len(one) == len(other) and n_different == 1
    return is_one_letter or difflib.SequenceMatcher(None, one, other).ratio() >= _SIMILAR


def _count_shared_end(one: str, other: str) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
