"""Where a subject stands in a prompt that writes it out."""

import re

from editbench.datasets.records import Record


def find_subject(prompt: str, subject: str) -> list[int]:
    """Character offsets at which `subject` occurs in `prompt`.

    Occurrences that are a part of a longer word count only where there is no other: "Ann" stands
    once in "Did Ann join the Annals?".
    """
    whole_words = re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)
    return [match.start() for match in whole_words] or [
        match.start() for match in re.finditer(re.escape(subject), prompt)
    ]


def cut_out(prompt: str, subject: str, start: int) -> str:
    """The prompt with ``{}`` in place of the `subject` at `start`."""
    return f"{prompt[:start]}{{}}{prompt[start + len(subject) :]}"


def template_of(record: Record, subject: str) -> tuple[str, bool]:
    """The `prompt` of a record with ``{}`` where the subject goes.

    Args:
        record: A record with a prompt that has ``{}``, or the subject itself, exactly once.
        subject: Its subject.

    Returns:
        The template, and whether the subject was written out.

    Raises:
        DataError: It has neither, or more than one.
    """
    prompt = record.text("prompt")
    n_places = prompt.count("{}")
    if n_places == 1:
        return prompt, False
    found = find_subject(prompt, subject)
    if n_places or len(found) != 1:
        raise record.fail(
            "prompt",
            f"must contain '{{}}' exactly once, or else the subject, got {prompt!r} with '{{}}' "
            f"{_times(n_places)} and {subject!r} {_times(len(found))}. Put '{{}}' where the "
            "subject goes.",
        )
    return cut_out(prompt, subject, found[0]), True


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")
