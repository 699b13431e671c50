"""Data files as records: JSON arrays, JSON Lines and CSV, with the line of every record."""

import codecs
import csv
import hashlib
import io
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from editbench.datasets.records import Record, shown
from editbench.errors import DataError, UnknownNameError

_NOT_WHITESPACE = re.compile(r"[^ \t\r\n]")


@dataclass(frozen=True, slots=True)
class DataFile:
    """A text file that was read in one go, so that its text and its sum belong together.

    Attributes:
        path: As the user gave it; errors begin with it.
        text: Content, decoded; a byte order mark is not part of it.
        sha256: SHA-256 of the bytes, in hexadecimal.
    """

    path: Path
    text: str = field(repr=False)
    sha256: str


def read_data_file(path: Path) -> DataFile:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        DataError: The file is missing, unreadable, empty or not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: cannot be read: {reason}. Check the path.") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: is not UTF-8, got UTF-16. Save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # With a byte order mark the decoder counts from behind it.
        offset = error.start + len(content) - len(error.object)
        line = content.count(b"\n", 0, offset) + 1
        raise DataError(
            f"{path}:{line}: is not UTF-8, got byte 0x{content[offset]:02x}. Save it as UTF-8."
        ) from error
    if not text.strip():
        raise DataError(f"{path}: is empty, got {len(content)} bytes. Check the path.")
    return DataFile(path, text, hashlib.sha256(content).hexdigest())


def json_array_records(file: DataFile) -> Iterator[Record]:
    """Yield the objects of a JSON array.

    The elements are decoded one by one, which is how the line of each is known.

    Raises:
        DataError: The file is no JSON array, is truncated, or an element is not an object.
    """
    text = file.text
    position = skip_whitespace(text, 0)
    if text[position] != "[":
        raise DataError(
            f"{file.path}: must hold a JSON array of records, got {_opening(text, position)}."
        )
    on_one_line = "\n" not in text.strip()
    n_records, line, counted_to = 0, 1, 0
    position = skip_whitespace(text, position + 1)
    closed = text.startswith("]", position)
    if closed:
        position = skip_whitespace(text, position + 1)
    while not closed:
        n_records += 1
        line += text.count("\n", counted_to, position)
        counted_to = position
        place = f"{file.path}: record {n_records}" if on_one_line else f"{file.path}:{line}"
        value, position = decode_json(text, position, place)
        yield record_of(value, place, line)
        position = skip_whitespace(text, position)
        separator = text[position : position + 1]
        if not separator:
            raise DataError(f"{place}: the file ends after this record. Fetch the whole file.")
        if separator not in ",]":
            raise DataError(
                f"{place}: after this record, got {_opening(text, position)}; expected ',' or ']'."
            )
        closed = separator == "]"
        position = skip_whitespace(text, position + 1)
    if position < len(text):
        raise DataError(f"{file.path}: holds text after the array, got {_opening(text, position)}.")


def json_lines_records(file: DataFile) -> Iterator[Record]:
    """Yield the objects of a JSON Lines file; blank lines count but hold nothing.

    Raises:
        DataError: A line is not one JSON object.
    """
    if file.text.lstrip().startswith("["):
        raise DataError(
            f"{file.path}: must hold one JSON object a line, got a JSON array. Write one object a "
            "line, without brackets and commas around them."
        )
    # Not `splitlines`, which also splits at characters that JSON allows inside strings.
    for line, text in enumerate(file.text.split("\n"), start=1):
        stripped = text.strip(" \t\r")
        if not stripped:
            continue
        place = f"{file.path}:{line}"
        value, end = decode_json(stripped, 0, place)
        end = skip_whitespace(stripped, end)
        if end < len(stripped):
            raise DataError(
                f"{place}: after the object, got {_opening(stripped, end)}; expected a new line."
            )
        yield record_of(value, place, line)


def csv_records(file: DataFile, columns: Collection[str]) -> Iterator[Record]:
    """Yield the rows of a CSV file whose first line names the columns; empty cells are absent.

    Args:
        file: Comma-separated text, quoted with ``"``.
        columns: The columns that may occur.

    Raises:
        DataError: The first line names an unknown column, or one twice; a row has another number
            of cells; a quote is not closed.
    """
    reader = csv.reader(io.StringIO(file.text, newline=""), strict=True, skipinitialspace=True)
    header: list[str] = []
    line = 0
    try:
        for cells in reader:
            first_line, line = line + 1, reader.line_num
            if not cells:
                continue
            place = f"{file.path}:{first_line}"
            if not header:
                header = _checked_header(cells, columns, place)
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{place}: wrong number of cells, got {len(cells)}; expected {len(header)} "
                    f"({', '.join(header)}). Quote cells that hold commas."
                )
            fields = {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()}
            yield Record(place, first_line, fields)
    except csv.Error as error:
        raise DataError(f"{file.path}:{line + 1}: is not valid CSV: {error}.") from error


def _checked_header(cells: list[str], columns: Collection[str], place: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    for name in header:
        if name not in columns:
            raise DataError(f"{place}: {UnknownNameError('column', name, columns)}")
        if header.count(name) > 1:
            raise DataError(f"{place}: column '{name}' occurs {header.count(name)} times.")
    return header


def record_of(value: object, place: str, line: int) -> Record:
    """Take a decoded JSON value, which must be an object, for a record."""
    if not isinstance(value, dict):
        raise DataError(f"{place}: the record must be an object, got {shown(value)}.")
    return Record(place, line, value)


def decode_json(text: str, position: int, place: str) -> tuple[object, int]:
    """Decode the JSON value at `position`; also returns where it ends.

    Raises:
        DataError: There is no JSON value, or it names a field twice; the message begins with
            `place`.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_unique_fields)
    try:
        return decoder.raw_decode(text, position)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            raise DataError(
                f"{place}: ends in the middle of the record, "
                f"got {shown(text.rstrip()[-40:])}. Fetch the whole file."
            ) from error
        raise DataError(
            f"{place}: is not valid JSON: {error.msg}, got {_opening(text, error.pos)}."
        ) from error
    except RecursionError as error:
        raise DataError(f"{place}: is nested too deeply to be a record.") from error
    except ValueError as error:
        raise DataError(f"{place}: is not valid JSON: {error}.") from error


def _unique_fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field '{repeated}' occurs twice in one object")
    return fields


def skip_whitespace(text: str, position: int) -> int:
    """The first position, from `position` on, that holds no JSON whitespace."""
    found = _NOT_WHITESPACE.search(text, position)
    return len(text) if found is None else found.start()


def _opening(text: str, position: int) -> str:
    """What stands at `position`, as an error message shows it."""
    return shown(text[position : position + 200])
