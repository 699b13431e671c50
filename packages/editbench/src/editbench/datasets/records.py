"""Records of a data file, read field by field, and what was understood of them.

Errors say where the fault is.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TypeVar

from editbench.errors import DataError, UnknownNameError, shown

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Record:
    """The fields of one record, and its place in the file.

    A field that is absent and a field that is null are the same thing.

    Attributes:
        place: File and line as ``facts.jsonl:3``; where a JSON array stands on a single line, file
            and record number (from 1) as ``zsre.json: record 3``.
        line: Number of the record's first line, from 1.
        fields: Names and values as read.
        parent: Name of the field that holds this record, where it is nested in another.
        names: What the file itself calls a field, where that is something else.
    """

    place: str
    line: int
    fields: Mapping[str, object]
    parent: str = ""
    names: Mapping[str, str] = field(default_factory=dict)

    def fail(self, field: str, problem: str) -> DataError:
        """An error that names file, line and `field`; `problem` reads on after the name."""
        return DataError(f"{self.place}: field '{self.full_name(field)}' {problem}")

    def text(self, field: str) -> str:
        """A string that is not blank."""
        value = self.optional_text(field)
        if value is None:
            raise self._missing(field)
        return value

    def optional_text(self, field: str) -> str | None:
        """A string that is not blank, or None where there is no such field."""
        value = self.fields.get(field)
        return None if value is None else self._checked_text(field, value)

    def optional_string(self, field: str) -> str | None:
        """A string, blank or empty too, or None where there is no such field."""
        value = self.fields.get(field)
        if value is not None and not isinstance(value, str):
            raise self._wrong_type(field, value, "a string")
        return value

    def optional_flag(self, field: str) -> bool:
        """True or false, which a CSV file spells out; false where there is no such field."""
        value = self.fields.get(field)
        if value is None or isinstance(value, bool):
            return bool(value)
        flag = str(value).strip().lower()
        if not isinstance(value, str) or flag not in ("true", "false"):
            raise self._wrong_type(field, value, "true or false")
        return flag == "true"

    def optional_identifier(self, field: str) -> str | None:
        """A string or an integer, as a string, or None where there is no such field."""
        value = self.fields.get(field)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return None if value is None else self._checked_text(field, value, "a string or an integer")

    def optional_date(self, field: str) -> str | None:
        """A day as ISO 8601 writes it, or None where there is no such field."""
        value = self.optional_text(field)
        if value is not None:
            try:
                date.fromisoformat(value)
            except ValueError as error:
                raise self.fail(
                    field, f"is no date, got {shown(value)}; expected one such as 2026-03-31."
                ) from error
        return value

    def identifier(self, field: str) -> str:
        """A string or an integer, as a string."""
        value = self.optional_identifier(field)
        if value is None:
            raise self._missing(field)
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of strings, none of them blank; the list may be empty."""
        return self._list(field, "a list of strings", self._checked_text)

    def optional_texts(self, field: str) -> tuple[str, ...]:
        """A list of strings, none of them blank; empty where there is no such field."""
        return () if self.fields.get(field) is None else self.texts(field)

    def record(self, field: str) -> "Record":
        """An object."""
        if self.fields.get(field) is None:
            raise self._missing(field)
        return self._checked_record(field, self.fields[field])

    def records(self, field: str) -> tuple["Record", ...]:
        """A list of objects; the list may be empty."""
        return self._list(field, "a list of objects", self._checked_record)

    def optional_records(self, field: str) -> tuple["Record", ...]:
        """A list of objects; empty where there is no such field."""
        return () if self.fields.get(field) is None else self.records(field)

    def reject_unknown_fields(self, known: Collection[str]) -> None:
        """Raise a `DataError` for the first field that is not among `known`."""
        for name in self.fields:
            if name not in known:
                error = UnknownNameError("field", self.full_name(name), map(self.full_name, known))
                raise DataError(f"{self.place}: {error}") from error

    def full_name(self, field: str) -> str:
        """The name of a field as the file has it, with those of the records it is nested in."""
        name, bracket, rest = field.partition("[")
        own = f"{self.names.get(name, name)}{bracket}{rest}"
        return f"{self.parent}.{own}" if self.parent else own

    def _missing(self, field: str) -> DataError:
        present = ", ".join(self.fields) or "no fields"
        return self.fail(field, f"is missing, got {present}. Add it.")

    def _checked_text(self, field: str, value: object, expected: str = "a string") -> str:
        if not isinstance(value, str):
            raise self._wrong_type(field, value, expected)
        if not value.strip():
            raise self.fail(field, f"is empty, got {value!r}. Fill it in.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.fail(
                field, f"holds half of a surrogate pair, got {shown(value)}. Escape both halves."
            ) from error
        return value

    def _checked_record(self, field: str, value: object) -> "Record":
        if not isinstance(value, dict):
            raise self._wrong_type(field, value, "an object")
        return Record(self.place, self.line, value, self.full_name(field))

    def _list(
        self, field: str, expected: str, check: Callable[[str, object], _Item]
    ) -> tuple[_Item, ...]:
        value = self.fields.get(field)
        if value is None:
            raise self._missing(field)
        if not isinstance(value, list):
            raise self._wrong_type(field, value, expected)
        return tuple(check(f"{field}[{index}]", item) for index, item in enumerate(value))

    def _wrong_type(self, field: str, value: object, expected: str) -> DataError:
        return self.fail(field, f"has the wrong type, got {shown(value)}; expected {expected}.")


class Understanding:
    """Gathers, over the records of a file, how they were read, for one line about it.

    Attributes:
        form: What the file turned out to be, such as ``a JSON array``; empty where that is the
            usual one.
    """

    def __init__(self) -> None:
        self.form = ""
        self._taken: dict[str, str] = {}
        self._ignored: dict[str, list[str]] = {}

    def take(self, name: str, meaning: str) -> None:
        """Note that the field `name` was read as `meaning`."""
        self._taken.setdefault(name, meaning)

    def ignore(self, name: str, reason: str) -> None:
        """Note that the field `name` was not read."""
        names = self._ignored.setdefault(reason, [])
        if name not in names:
            names.append(name)

    def describe(self, path: Path) -> str | None:
        """One line, or None where everything was as documented."""
        parts = [f"read as {self.form}"] if self.form else []
        if self._taken:
            parts.append(", ".join(f"{name} as {what}" for name, what in self._taken.items()))
        if self._ignored:
            groups = (f"{', '.join(names)} ({why})" for why, names in self._ignored.items())
            parts.append(f"ignored: {', '.join(groups)}")
        return f"{path}: {'; '.join(parts)}." if parts else None
