"""A table in LaTeX."""

from itertools import groupby

from editbench.results.tables.model import Cell, Column, Table

_ESCAPES = {
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


def write_latex(table: Table) -> str:
    r"""Write a table as a LaTeX table float with the rules of booktabs.

    The title and the notes are its caption. The document needs ``\usepackage{booktabs}`` and, for
    quotation marks, ``\usepackage[T1]{fontenc}``.
    """
    lines = [f"% {_comment(warning)}" for warning in table.warnings]
    if not table.is_empty:
        caption = " ".join(_escape(_end(text)) for text in (table.title, *table.notes))
        alignment = "".join("r" if column.align == "right" else "l" for column in table.columns)
        lines += [
            r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}.",
            r"\begin{table}",
            r"  \centering",
            f"  \\caption{{{caption}}}",
            f"  \\begin{{tabular}}{{{alignment}}}",
            r"    \toprule",
            *_write_groups(table.columns),
            _write_row([_escape(column.heading) for column in table.columns]),
        ]
        for section in table.sections:
            lines.append(r"    \midrule")
            lines += [_write_row([_write_cell(cell) for cell in row]) for row in section]
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
            cells.append(f"\\multicolumn{{{n_columns}}}{{{place}}}{{{_escape(group)}}}")
        else:
            cells += [""] * n_columns
    return [_write_row(cells)]


def _write_row(cells: list[str]) -> str:
    return f"    {' & '.join(cells)} \\\\"


def _write_cell(cell: Cell) -> str:
    text = _escape(cell.text)
    if cell.bold:
        text = f"\\textbf{{{text}}}"
    if cell.margin:
        text += f" $\\pm$ {_escape(cell.margin)}"
    if cell.remark:
        text += f" {_escape(cell.remark)}"
    return text


def _escape(text: str) -> str:
    return "".join(_ESCAPES.get(character, character) for character in text.replace("\n", " "))


def _comment(text: str) -> str:
    return " ".join(text.split())


def _end(sentence: str) -> str:
    return f"{sentence[:1].upper()}{sentence[1:].removesuffix('.')}."
