"""A table in a markup language: Markdown or LaTeX."""

import re
from collections.abc import Callable
from itertools import groupby

from editbench.results.tables.model import Cell, Column, Table

_MARKDOWN = re.compile(r"([\\`*_|<>\[\]#~$])")
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": r"$-$",
    "–": "--",
    "…": r"\ldots{}",
    "λ": r"$\lambda$",
}


def write_markdown(table: Table) -> str:
    """Write a table as a GitHub-flavored Markdown table, with its title above and notes below."""

    def row(cells: list[str]) -> str:
        return f"| {' | '.join(cells)} |"

    blocks = []
    if not table.is_empty:
        lines = [
            row([_escape_markdown(column.heading) for column in table.columns]),
            row(["---:" if column.align == "right" else "---" for column in table.columns]),
            *(
                row([_write_cell(cell, _escape_markdown, "**{}**", "±") for cell in cells])
                for section in table.sections
                for cells in section
            ),
        ]
        notes = map(_escape_markdown, table.notes)
        blocks = [_escape_markdown(table.title), "\n".join(lines), *notes]
    blocks += [f"**{_escape_markdown(warning)}**" for warning in table.warnings]
    return "\n\n".join(filter(None, blocks)) + "\n"


def write_latex(table: Table) -> str:
    r"""Write a table as a LaTeX table float with the rules of booktabs.

    The title and the notes are its caption. The document needs ``\usepackage{booktabs}`` and, for
    quotation marks, ``\usepackage[T1]{fontenc}``.
    """
    lines = [f"% {' '.join(warning.split())}" for warning in table.warnings]
    if not table.is_empty:
        caption = " ".join(_escape_latex(_end(text)) for text in (table.title, *table.notes))
        alignment = "".join("r" if column.align == "right" else "l" for column in table.columns)
        lines += [
            r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}.",
            r"\begin{table}",
            r"  \centering",
            f"  \\caption{{{caption}}}",
            f"  \\begin{{tabular}}{{{alignment}}}",
            r"    \toprule",
            *_write_groups(table.columns),
            _write_latex_row([_escape_latex(column.heading) for column in table.columns]),
        ]
        for section in table.sections:
            lines.append(r"    \midrule")
            lines += [
                _write_latex_row(
                    [_write_cell(cell, _escape_latex, r"\textbf{{{}}}", r"$\pm$") for cell in row]
                )
                for row in section
            ]
        lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _write_groups(columns: tuple[Column, ...]) -> list[str]:
    """The line above the headings; a group that spans several columns is written once."""
    if not any(column.group for column in columns):
        return []
    cells = []
    for group, members in groupby(columns, key=lambda column: column.group):
        n_columns = len(list(members))
        if group:
            place = "r" if n_columns == 1 else "c"
            cells.append(f"\\multicolumn{{{n_columns}}}{{{place}}}{{{_escape_latex(group)}}}")
        else:
            cells += [""] * n_columns
    return [_write_latex_row(cells)]


def _write_latex_row(cells: list[str]) -> str:
    return f"    {' & '.join(cells)} \\\\"


def _end(sentence: str) -> str:
    return f"{sentence[:1].upper()}{sentence[1:].removesuffix('.')}."


def _write_cell(cell: Cell, escape: Callable[[str], str], bold: str, plus_minus: str) -> str:
    text = bold.format(escape(cell.text)) if cell.bold else escape(cell.text)
    if cell.margin:
        text += f" {plus_minus} {escape(cell.margin)}"
    if cell.remark:
        text += f" {escape(cell.remark)}"
    return text


def _escape_markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", text.replace("\n", " "))


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text.replace("\n", " "))
