"""What was asked about each case and what the model said: for reading, beside the numbers."""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from editbench.errors import RunError


class ProbeTranscript(BaseModel):
    """One probe and how likely its answers were.

    Attributes:
        kind: ``efficacy``, ``paraphrase`` or ``neighborhood``.
        prompt: The prompt.
        expected: The continuation that should be the likelier one.
        alternative: The one it competes with, if any.
        log_prob_expected: Mean over tokens of log p of `expected`; None if it was not asked.
        log_prob_alternative: The same of `alternative`.
        text: What the model wrote after the prompt by itself; None if it was not asked.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    prompt: str
    expected: str
    alternative: str | None = None
    log_prob_expected: float | None = None
    log_prob_alternative: float | None = None
    text: str | None = None


class QueryTranscript(BaseModel):
    """One prompt of a portability probe, and what the model says behind it.

    Attributes:
        prompt: The prompt.
        answers: The answers that count.
        answer: The likeliest of them; None if it was not asked.
        log_prob: Mean over its tokens of log p.
        is_likeliest: Whether every token of one of the answers is the likeliest in its place.
        text: What the model wrote after the prompt by itself.
        is_written: Whether that has one of the answers in it.
    """

    model_config = ConfigDict(frozen=True)

    prompt: str
    answers: tuple[str, ...]
    answer: str | None = None
    log_prob: float | None = None
    is_likeliest: bool | None = None
    text: str | None = None
    is_written: bool | None = None


class PortabilityTranscript(BaseModel):
    """One portability probe, and whether it was passed.

    Attributes:
        kind: ``reasoning``, ``aliasing``, ``reversal`` or ``multi_hop``.
        needs_all: Whether all queries must be answered right; otherwise one is enough.
        is_masked: Whether it was not asked, since other edits of the batch change what it follows
            from, or an edit that it follows from is not in the batch.
        accuracy: Whether it was passed by what is likeliest; None where it does not count.
        generation: Whether it was passed by what the model wrote; None likewise. A probe that is
            not masked does not count where the unedited model failed a condition.
        queries: What is asked.
        conditions: What the *unedited* model must know, and what that said.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    needs_all: bool = False
    is_masked: bool = False
    accuracy: bool | None = None
    generation: bool | None = None
    queries: tuple[QueryTranscript, ...]
    conditions: tuple[QueryTranscript, ...] = ()


class CaseTranscript(BaseModel):
    """One case: the fact, its probes, and what the model wrote.

    Attributes:
        case_id: The case.
        relation: Name of its relation, if it has one.
        subject: Whom or what the fact is about.
        prompt: The rewrite prompt, with the subject filled in.
        target: The new object.
        target_true: The old one, if it is known.
        probes: The probes, in the case's order.
        texts: Generated texts, each with the prompt that it begins with.
        portability: The portability probes, if they are measured.
    """

    model_config = ConfigDict(frozen=True)

    case_id: str
    relation: str | None = None
    subject: str
    prompt: str
    target: str
    target_true: str | None = None
    probes: tuple[ProbeTranscript, ...]
    texts: tuple[tuple[str, str], ...] = ()
    portability: tuple[PortabilityTranscript, ...] = ()


def encode_transcripts(transcripts: Iterable[CaseTranscript]) -> bytes:
    """Write transcripts as gzipped JSON Lines; equal transcripts give equal bytes."""
    lines = (transcript.model_dump_json(exclude_none=True) for transcript in transcripts)
    return gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)


def read_transcripts(path: Path) -> Iterator[CaseTranscript]:
    """Read the transcripts of a trial.

    Raises:
        RunError: The file cannot be read, or a line is no transcript.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                yield CaseTranscript.model_validate_json(line)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise RunError(
            f"read transcripts: cannot read {str(path)!r} ({str(error).splitlines()[0]}). Delete "
            f"the folder {str(path.parent)!r} and resume the run to compute its trial again."
        ) from error
