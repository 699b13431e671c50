"""Write the table of recorded benchmarks that the documentation shows.

python benchmarks/write_table.py docs/results/tables/benchmarks.md
"""

import json
import sys
from pathlib import Path
from typing import Any

from side_by_side import RESULTS


def main() -> None:
    """Read all records, and write one table of ratios and one of growth."""
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    lines = ["| what | model | usual way | here | ratio | largest difference |"]
    lines.append("|---|---|--:|--:|--:|--:|")
    for record in records:
        model = record["settings"].get("model", "")
        lines += [_ratio(row, model) for row in record["rows"] if "ratio" in row]
    lines += ["", "| what | seconds | peak memory |", "|---|--:|--:|"]
    for record in records:
        lines += [_growth(row) for row in record["rows"] if "peak_bytes" in row and "n" in row]
    lines += ["", "Recorded by:", ""]
    for record in records:
        machine = record["machine"]
        where = (
            f"{machine['threads']} threads of {machine['cores']} cores, torch {machine['torch']}"
        )
        lines.append(f"- `{record['command']}`: {where}, median of {record['repeats']}")
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n")


def _ratio(row: dict[str, Any], model: str) -> str:
    difference = f"{row['difference']:.0e}" if "difference" in row else ""
    cells = [
        row["what"],
        model,
        _seconds(row["slow"]),
        _seconds(row["fast"]),
        f"**{row['ratio']:.1f}×**",
    ]
    return f"| {' | '.join([*cells, difference])} |"


def _growth(row: dict[str, Any]) -> str:
    return f"| {row['what']} | {_seconds(row['seconds'])} | {row['peak_bytes'] / 2**20:,.0f} MiB |"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{1000 * seconds:,.1f} ms"


if __name__ == "__main__":
    main()
