"""CounterFact's attribute snippets: texts about things that share a relation and a target."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from editbench.datasets.files import decode_json, record_of, skip_whitespace
from editbench.datasets.records import Record, shown
from editbench.errors import DataError
from editbench.files.seals import checksum_file

SnippetKey = tuple[str, str]
"""Ids of a relation and of a target, such as ``("P103", "Q1860")``."""

_N_CHARACTERS_READ = 1 << 24


@dataclass(frozen=True, slots=True)
class Snippets:
    """Some of the texts of an ``attribute_snippets.json``.

    Attributes:
        texts: For each relation and target that was wanted and found, its texts in file order.
        sha256: SHA-256 of the whole file, in hexadecimal.
    """

    texts: Mapping[SnippetKey, tuple[str, ...]]
    sha256: str


def read_snippets(path: Path, wanted: Collection[SnippetKey]) -> Snippets:
    """Read the texts of the wanted relations and targets.

    The original has 926 MB, so the file is streamed: no more of it is held at once than the
    wanted texts, one element, and 16 million characters.

    Args:
        path: A JSON array of ``{"relation_id", "target_id", "samples": [{"text", …}, …]}``.
        wanted: Keys of the texts to keep.

    Raises:
        DataError: The file cannot be read or is malformed.
    """
    texts: dict[SnippetKey, list[str]] = {}
    try:
        sha256 = checksum_file(path)
        with path.open(encoding="utf-8-sig") as file:
            for record in _stream_records(file, path):
                key = (record.text("relation_id"), record.text("target_id"))
                if key in wanted:
                    texts.setdefault(key, []).extend(
                        sample.text("text")
                        for sample in record.records("samples")
                        if sample.fields.get("text") != ""
                    )
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: cannot be read: {reason}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8: {error.reason}. Fetch the file again.") from error
    return Snippets({key: tuple(found) for key, found in texts.items()}, sha256)


def _stream_records(file: TextIO, path: Path) -> Iterator[Record]:
    """Yield the objects of a JSON array without holding the whole of it."""
    decoder = json.JSONDecoder()
    text, position, n_records = file.read(_N_CHARACTERS_READ), 0, 0
    while True:
        place = f"{path}: record {n_records + 1}"
        position = skip_whitespace(text, position)
        opening = text[position : position + 1]
        if n_records and opening == "]":
            return
        if opening and opening != ("," if n_records else "["):
            raise DataError(
                f"{place}: must stand in a JSON array, got {shown(text[position:][:200])}."
            )
        start = skip_whitespace(text, position + 1)
        try:
            value, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            # Either malformed or cut off by the end of what was read: read on to find out. Reading
            # at least as much again keeps the work linear for an element of any size.
            more = file.read(max(_N_CHARACTERS_READ, len(text) - position))
            if more:
                text, position = text[position:] + more, 0
                continue
            value, end = decode_json(text, start, place)
        n_records += 1
        yield record_of(value, place, line=1)
        position = end
