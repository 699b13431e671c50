"""What a model must say, must never say, and must go on saying."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from editbench.datasets.facts import read_facts
from editbench.datasets.files import json_records, read_data_file
from editbench.datasets.records import Record
from editbench.errors import DataError
from editbench.questions import Score
from editbench.requests import EditCase, standing_cases

CheckKind = Literal["says", "never_says", "unchanged", "survives"]

N_TOKENS = 16
"""How many tokens are written after a prompt, where a check does not say."""

_TEXTS: tuple[CheckKind, ...] = ("says", "never_says", "survives")
_FIELDS = ("prompt", *_TEXTS, "unchanged", "chat", "joiner", "max_tokens")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a model must do.

    Attributes:
        place: Where it stands, such as ``checks.jsonl:3``.
        kind: ``says``: its text after the prompt has one of `texts` in it. ``never_says``: it has
            none of them. ``unchanged``: it writes what the model wrote before. ``survives``: as
            ``says``, where the model said so before; as ``unchanged``, where it did not.
        prompt: What the model is given.
        texts: What is looked for, as whole words, whatever the case of their letters.
        chat: Whether the prompt is a user's message, which the model's chat template goes around.
        joiner: What stands between the prompt and the text; see `EditRequest`.
        n_tokens: How many tokens are written, always the likeliest; fewer where the text ends.
    """

    place: str
    kind: CheckKind
    prompt: str
    texts: tuple[str, ...] = ()
    chat: bool = False
    joiner: str | None = None
    n_tokens: int = N_TOKENS

    @property
    def question(self) -> Score:
        """How the prompt is put to a model."""
        return Score(self.prompt, self.texts[0] if self.texts else ".", self.joiner, self.chat)

    @property
    def compares(self) -> bool:
        """Whether the model as it was before has a say."""
        return self.kind in {"unchanged", "survives"}

    @property
    def expected(self) -> str:
        """What is wanted, in words."""
        listed = " or ".join(map(repr, self.texts))
        return {
            "says": f"{listed}",
            "never_says": f"never {listed}",
            "unchanged": "as before",
            "survives": f"{listed}, if it said so before, or else as before",
        }[self.kind]


def read_checks(path: Path) -> list[Check]:
    """Read a file of checks: JSON Lines or a JSON array.

    A record has a `prompt` and one or more of `says`, `never_says`, `survives` (a text, or a list
    of texts of which one is enough), and ``"unchanged": true``; each is a check of its own. It may
    have `chat`, `joiner` and `max_tokens`.

    Raises:
        DataError: The file cannot be read, or a record of it is malformed.
    """
    checks = [
        check for record in json_records(read_data_file(path)) for check in _read_record(record)
    ]
    if not checks:
        raise DataError(f"{path}: holds no check. Write one JSON object a line.")
    return checks


def _read_record(record: Record) -> Iterator[Check]:
    record.reject_unknown_fields(_FIELDS)
    prompt, chat = record.text("prompt"), record.optional_flag("chat")
    joiner = record.optional_string("joiner")
    n_tokens = record.fields.get("max_tokens", N_TOKENS)
    if not isinstance(n_tokens, int) or isinstance(n_tokens, bool) or n_tokens < 1:
        raise record.fail("max_tokens", f"must be a whole number from 1 on, got {n_tokens!r}.")
    found: list[tuple[CheckKind, tuple[str, ...]]] = []
    for kind in _TEXTS:
        value = record.fields.get(kind)
        if value is not None:
            texts = record.texts(kind) if isinstance(value, list) else (record.text(kind),)
            found.append((kind, tuple(text.strip() for text in texts)))
            if not texts:
                raise record.fail(kind, "is empty, got []. Give at least one text.")
    if record.optional_flag("unchanged"):
        found.append(("unchanged", ()))
    if not found:
        raise record.fail(
            "says", f"is missing, and so are {', '.join((*_TEXTS[1:], 'unchanged'))}. Add one."
        )
    for kind, texts in found:
        yield Check(record.place, kind, prompt, texts, chat, joiner, n_tokens)


def checks_of_facts(path: Path, as_of: date | None = None) -> list[Check]:
    """Make checks of a facts file.

    The model must say each fact's target after its prompt and its paraphrases; what it said to a
    neighbor must survive. Facts that have expired by `as_of` are left out, and those that a later
    one of the file contradicts, which takes their place.

    Raises:
        DataError: The file cannot be read, or a record of it is malformed.
    """
    cases = [
        case for case in read_facts(path) if as_of is None or not case.request.has_expired(as_of)
    ]
    return [check for case in standing_cases(cases) for check in _checks_of_case(case, path)]


def _checks_of_case(case: EditCase, path: Path) -> Iterator[Check]:
    request = case.request
    place = f"{path}: fact {request.case_id}"

    def make(kind: CheckKind, prompt: str, texts: Sequence[str]) -> Check:
        return Check(place, kind, prompt, tuple(texts), request.chat, request.joiner)

    yield make("says", request.text, [request.target])
    for probe in case.probes:
        if probe.kind == "paraphrase":
            yield make("says", probe.prompt, [request.target])
        elif probe.kind == "neighborhood":
            yield make("survives", probe.prompt, [probe.expected])
