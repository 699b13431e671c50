"""Write the tables of recorded benchmarks that the documentation shows.

python benchmarks/write_table.py docs/results/tables
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from row_tables import TABLES
from side_by_side import RESULTS


def main() -> None:
    """Read all records, and write a file for those of CPUs and one for those of GPUs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where benchmarks.md and gpu_benchmarks.md go")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    args = parser.parse_args()
    for name, folder in (("benchmarks", args.results), ("gpu_benchmarks", args.results / "gpu")):
        lines = describe(sorted(folder.glob("*.json")))
        (args.folder / f"{name}.md").write_text("\n".join(lines) + "\n")


def describe(paths: Sequence[Path]) -> Iterator[str]:
    """A table for each kind of row, what was timed and what counted, and the commands."""
    records = [json.loads(path.read_text()) for path in paths]
    if not records:
        yield "Nothing has been recorded yet."
        return
    for table in TABLES:
        yield from table.lines(records)
    yield "Recorded by:"
    yield ""
    yield from map(_origin, records)


def _origin(record: dict[str, Any]) -> str:
    """The command of a record, what it ran on, and what is missing in it."""
    machine = record["machine"]
    parts = [machine["device"]] if "device" in machine else []
    if "threads" in machine:
        threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
        parts.append(f"{threads} of {machine['cores']} cores")
    parts += [f"torch {machine['torch']}", _how(record)]
    return f"- `{record['command']}`: {', '.join(parts)}{_missing(record)}"


def _how(record: dict[str, Any]) -> str:
    rows = record["rows"]
    if not any({"slow", "seconds", "eager_seconds", "two_scorers"} & row.keys() for row in rows):
        return "not timed"
    if "repeats" not in record:
        return "once"
    all_repeats = {row.get("repeats", record["repeats"]) for row in rows if "exponent" not in row}
    return f"median of {' or '.join(map(str, sorted(all_repeats, reverse=True)))}"


def _missing(record: dict[str, Any]) -> str:
    if left_out := record["settings"].get("left_out"):
        return f"; did not fit into memory: {'; '.join(left_out)}"
    if record.get("complete", True):
        return ""
    if (running := record.get("running")) is None:
        return "; **ended early**"
    return (
        f"; **ended early**, after {running['seconds']:,.0f} seconds of {running['stage']} "
        f"({running['done']:,} of {running['total']:,})"
    )


if __name__ == "__main__":
    main()
