"""Write the tables of recorded benchmarks that the documentation shows.

python benchmarks/write_table.py docs/results/tables/benchmarks.md
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from row_tables import TABLES
from side_by_side import RESULTS


def main() -> None:
    """Read all records, and write a table for each kind of row: what was timed, what counted."""
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    lines = [line for table in TABLES for line in table.lines(records)]
    lines += ["Recorded by:", "", *map(_origin, records)]
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n")


def _origin(record: dict[str, Any]) -> str:
    """The command of a record, and what it ran on."""
    machine = record["machine"]
    n_threads = machine["threads"]
    threads = "1 thread" if n_threads == 1 else f"{n_threads} threads"
    where = f"{threads} of {machine['cores']} cores, torch {machine['torch']}"
    return f"- `{record['command']}`: {where}, {_how(record)}{_left_out(record)}"


def _how(record: dict[str, Any]) -> str:
    rows = record["rows"]
    if not any({"slow", "seconds", "eager_seconds"} & row.keys() for row in rows):
        return "not timed"
    all_repeats = {row.get("repeats", record["repeats"]) for row in rows if "exponent" not in row}
    return f"median of {' or '.join(map(str, sorted(all_repeats, reverse=True)))}"


def _left_out(record: dict[str, Any]) -> str:
    left_out: Sequence[str] = record["settings"].get("left_out", ())
    return f"; did not fit into memory: {'; '.join(left_out)}" if left_out else ""


if __name__ == "__main__":
    main()
