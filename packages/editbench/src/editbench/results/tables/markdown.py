"""A table in Markdown."""

import re

from editbench.results.tables.model import Cell, Column, Table

_SPECIAL = re.compile(r"([\\`*_|<>\[\]#~$])")


def write_markdown(table: Table) -> str:
    """Write a table as a GitHub-flavored Markdown table, with its title above and notes below."""
    blocks = []
    if not table.is_empty:
        lines = [
            _write_row([_escape(column.heading) for column in table.columns]),
            _write_row([_rule(column) for column in table.columns]),
            *(
                _write_row([_write_cell(cell) for cell in row])
                for section in table.sections
                for row in section
            ),
        ]
        blocks = [_escape(table.title), "\n".join(lines), *map(_escape, table.notes)]
    blocks += [f"**{_escape(warning)}**" for warning in table.warnings]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _write_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(column: Column) -> str:
    return "---:" if column.align == "right" else "---"


def _write_cell(cell: Cell) -> str:
    text = _escape(cell.text)
    if cell.bold:
        text = f"**{text}**"
    if cell.margin:
        text += f" ± {_escape(cell.margin)}"
    if cell.remark:
        text += f" {_escape(cell.remark)}"
    return text


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text.replace("\n", " "))
