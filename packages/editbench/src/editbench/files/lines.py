"""Lines of numbers, one dataclass each, as JSON and as CSV."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def line_to_dict(line: "DataclassInstance") -> dict[str, Any]:
    """The fields of a line; NaN becomes None."""
    return {name: None if value != value else value for name, value in asdict(line).items()}


def lines_to_json(lines: "Iterable[DataclassInstance]") -> str:
    """A JSON list of objects."""
    objects = [line_to_dict(line) for line in lines]
    return json.dumps(objects, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def lines_to_csv(kind: "type[DataclassInstance]", lines: "Iterable[DataclassInstance]") -> str:
    """CSV with a header of the fields of `kind`; what is None or NaN is empty."""
    text = io.StringIO()
    names = [field.name for field in fields(kind)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(line_to_dict, lines))
    return text.getvalue()
