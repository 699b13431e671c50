"""Write the table of recorded benchmarks that the documentation shows.

python benchmarks/write_table.py docs/results/tables/benchmarks.md
"""

import json
import sys
from pathlib import Path
from typing import Any

from side_by_side import RESULTS

from editbench.costs.plan import describe_flops

_HALF_COLUMNS = {
    "type": "dtype",
    "δ off by (median)": "offset_median",
    "(worst)": "offset_worst",
    "z off by (median)": "state_median",
    "(worst) ": "state_worst",
    "least cosine of δ": "cosine_least",
    "steps": "mean_steps",
    "loss": "mean_loss",
    "in float32": "mean_loss_in_float32",
    "ES": "efficacy_success",
    "PS": "paraphrase_success",
    "NS": "neighborhood_success",
}


def main() -> None:
    """Read all records, and write a table for each kind of row: what was timed, what counted."""
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    lines = ["| what | model | usual way | here | ratio | largest difference |"]
    lines.append("|---|---|--:|--:|--:|--:|")
    for record in records:
        model = record["settings"].get("model", "")
        lines += [_ratio(row, model) for row in record["rows"] if "slow" in row]
    lines += ["", "| what | seconds | peak memory |", "|---|--:|--:|"]
    for record in records:
        lines += [_growth(row) for row in record["rows"] if "peak_bytes" in row and "n" in row]
    lines += ["", "| counted | usual way | here | ratio | of it before the steps |"]
    lines.append("|---|--:|--:|--:|--:|")
    for record in records:
        lines += [_operations(row) for row in record["rows"] if "slow_operations" in row]
    lines += ["", "| padding of | tokens | batches | padding |", "|---|--:|--:|--:|"]
    for record in records:
        lines += [_padding(row) for row in record["rows"] if "padding" in row]
    lines += ["", f"| half precision | {' | '.join(_HALF_COLUMNS)} |"]
    lines.append("|---|---|" + "--:|" * (len(_HALF_COLUMNS) - 1))
    for record in records:
        lines += [_half(row) for row in record["rows"] if "dtype" in row]
    lines += ["", "| compiled | a step as it is | compiled | compiling | steps until it has paid |"]
    lines.append("|---|--:|--:|--:|--:|")
    for record in records:
        lines += [_compiled(row) for row in record["rows"] if "eager_seconds" in row]
    lines += ["", "Recorded by:", ""]
    for record in records:
        machine = record["machine"]
        n_threads = machine["threads"]
        threads = "1 thread" if n_threads == 1 else f"{n_threads} threads"
        where = f"{threads} of {machine['cores']} cores, torch {machine['torch']}"
        is_timed = any({"slow", "seconds", "eager_seconds"} & row.keys() for row in record["rows"])
        how = f"median of {record['repeats']}" if is_timed else "not timed"
        lines.append(f"- `{record['command']}`: {where}, {how}")
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


def _operations(row: dict[str, Any]) -> str:
    setup = f"{100 * row['setup_share']:.0f} %" if "setup_share" in row else ""
    sides = (describe_flops(row[side]) for side in ("slow_operations", "fast_operations"))
    return f"| {row['what']} | {' | '.join(sides)} | **{row['ratio']:.1f}×** | {setup} |"


def _padding(row: dict[str, Any]) -> str:
    share = f"{100 * row['padding']:.1f} %"
    return f"| {row['what']} | {row['n_tokens']:,} | {row['n_batches']:,} | {share} |"


def _half(row: dict[str, Any]) -> str:
    cells = [row["what"]]
    for field in _HALF_COLUMNS.values():
        value = row.get(field, "")
        if isinstance(value, float):
            is_share = field.startswith(("offset", "state"))
            value = f"{100 * value:.2g} %" if is_share else f"{value:.4g}"
        cells.append(value)
    return f"| {' | '.join(cells)} |"


def _compiled(row: dict[str, Any]) -> str:
    timed = ("eager_seconds", "compiled_seconds", "compiling_seconds")
    cells = [row["what"], *(_seconds(row[each]) if each in row else "failed" for each in timed)]
    n_steps = row.get("n_steps_to_pay")
    return f"| {' | '.join([*cells, 'never' if n_steps is None else f'{n_steps:,}'])} |"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{1000 * seconds:,.1f} ms"


if __name__ == "__main__":
    main()
