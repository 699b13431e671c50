"""Data files as records: JSON arrays, JSON Lines and CSV, with the line of every record."""

import codecs
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from editbench.datasets.records import Record
from editbench.errors import DataError, UnknownNameError, shown

_N_LEFT_OUT_SHOWN = 5
_NOT_WHITESPACE = re.compile(r"[^ \t\r\n]")
_NAME_OF = {",": "commas", ";": "semicolons", "\t": "tabs"}
_SPREADSHEET_HINT = re.compile(r'"?sep=([,;\t])"?')


@dataclass(frozen=True, slots=True)
class DataFile:
    """A text file that was read in one go, so that its text and its sum belong together.

    Attributes:
        path: As the user gave it; errors begin with it.
        text: Content, decoded; a byte order mark is not part of it.
        sha256: SHA-256 of the bytes, in hexadecimal.
        left_out: Why records were left out, each an error with its place; None where a record
            that cannot be used is an error.
    """

    path: Path
    text: str = field(repr=False)
    sha256: str
    left_out: list[DataError] | None = field(default=None, repr=False)

    def leave_out(self, error: DataError) -> None:
        """Note a record that cannot be used.

        Raises:
            DataError: `error`, where none may be left out.
        """
        if self.left_out is None:
            raise error
        self.left_out.append(error)


def read_data_file(path: Path, left_out: list[DataError] | None = None) -> DataFile:
    """Read a UTF-8 file, with or without a byte order mark.

    Args:
        path: The file.
        left_out: Takes up why records are left out; without it, none may be.

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
    return DataFile(path, text, hashlib.sha256(content).hexdigest(), left_out)


def describe_left_out(path: Path, left_out: Sequence[DataError], n_used: int) -> list[str]:
    """How many records of a file were left out, and the first reasons, as lines for the user."""
    if not left_out:
        return []
    lines = [f"{path}: left out {len(left_out)} of {len(left_out) + n_used} records:"]
    lines += [f"  {error}" for error in left_out[:_N_LEFT_OUT_SHOWN]]
    if len(left_out) > _N_LEFT_OUT_SHOWN:
        lines.append(f"  and {len(left_out) - _N_LEFT_OUT_SHOWN} more")
    return lines


def is_json_array(file: DataFile) -> bool:
    """Whether the file holds a JSON array, and not one object a line."""
    return file.text.lstrip().startswith("[")


def json_records(file: DataFile) -> Iterator[Record]:
    """Yield the objects of a JSON array or of a JSON Lines file, whichever it is.

    Raises:
        DataError: See `json_array_records` and `json_lines_records`.
    """
    return json_array_records(file) if is_json_array(file) else json_lines_records(file)


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
        try:
            yield record_of(value, place, line)
        except DataError as error:
            file.leave_out(error)
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
    if is_json_array(file):
        raise DataError(
            f"{file.path}: must hold one JSON object a line, got a JSON array. Write one object a "
            "line, without brackets and commas around them."
        )
    # Not `splitlines`, which also splits at characters that JSON allows inside strings.
    for line, text in enumerate(file.text.split("\n"), start=1):
        stripped = text.strip(" \t\r")
        if not stripped:
            continue
        try:
            yield _read_line(stripped, f"{file.path}:{line}", line)
        except DataError as error:
            file.leave_out(error)


def _read_line(text: str, place: str, line: int) -> Record:
    value, end = decode_json(text, 0, place)
    end = skip_whitespace(text, end)
    if end < len(text):
        raise DataError(
            f"{place}: after the object, got {_opening(text, end)}; expected a new line."
        )
    return record_of(value, place, line)


def csv_records(
    file: DataFile,
    columns: Collection[str],
    *,
    further: Callable[[Collection[str]], Collection[str]] = lambda _: (),
) -> Iterator[Record]:
    """Yield the rows of a CSV file whose first line names the columns; empty cells are absent.

    Args:
        file: Text with `find_delimiter` between its cells, which may be quoted with ``"``.
        columns: The columns that may occur.
        further: The columns that may occur besides, given those that do.

    Raises:
        DataError: The first line names an unknown column, or one twice; a row has another number
            of cells; a quote is not closed.
    """
    delimiter = find_delimiter(file, columns)
    reader = csv.reader(
        io.StringIO(file.text, newline=""),
        strict=True,
        skipinitialspace=True,
        delimiter=delimiter,
    )
    header: list[str] = []
    line = 0
    try:
        for cells in reader:
            first_line, line = line + 1, reader.line_num
            if not cells:
                continue
            place = f"{file.path}:{first_line}"
            if not header:
                if _SPREADSHEET_HINT.fullmatch(delimiter.join(cells)):
                    continue
                names = [cell.strip() for cell in cells]
                header = _checked_header(names, {*columns, *further(names)}, place)
                continue
            if len(cells) != len(header):
                file.leave_out(
                    DataError(
                        f"{place}: wrong number of cells, got {len(cells)}; expected {len(header)} "
                        f"({', '.join(header)}). Quote cells that hold {_NAME_OF[delimiter]}."
                    )
                )
                continue
            fields = {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()}
            yield Record(place, first_line, fields)
    except csv.Error as error:
        raise DataError(f"{file.path}:{line + 1}: is not valid CSV: {error}.") from error


def find_delimiter(file: DataFile, columns: Collection[str]) -> str:
    """What stands between cells: the one of comma, semicolon and tab that finds most columns.

    Spreadsheets write semicolons where the comma is the decimal sign, and may say so in a line
    ``sep=;`` above the header.
    """

    def count_columns(delimiter: str) -> int:
        cells = csv.reader([header], delimiter=delimiter, skipinitialspace=True)
        try:
            return sum(cell.strip() in columns for cell in next(cells, []))
        except csv.Error:  # `csv_records` says what is wrong, and where
            return 0

    header = io.StringIO(file.text.lstrip(), newline="").readline().strip(" \r\n")
    hint = _SPREADSHEET_HINT.fullmatch(header)
    return hint[1] if hint else max(_NAME_OF, key=count_columns)


def _checked_header(header: list[str], columns: Collection[str], place: str) -> list[str]:
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
