"""A table in the terminal, in whatever shape its width allows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from editbench.results.tables.model import Cell, Column, Table


def draw_table(table: Table) -> RenderableType:
    """Lay a table out for a rich console.

    Where the console is too narrow the table turns, so that its numbers stand below each other; or
    it falls into pieces, each with the names of its rows; or it becomes a list. No number and no
    name is ever cut, and no two columns have one heading.
    """
    parts: list[RenderableType] = []
    if not table.is_empty:
        parts.append(_FittedTable(table))
        parts += [Text(note, style="dim") for note in table.notes]
    return Group(*parts, *(Text(warning, style="yellow") for warning in table.warnings))


@dataclass(frozen=True)
class _FittedTable:
    """A table that takes its shape when it is printed."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.table.title:
            yield Text(self.table.title, style="table.title")
        pieces = shape_table(self.table, options.max_width)
        for piece in pieces:
            yield _draw(piece, _fit(piece, options.max_width) or [])
        if not pieces:
            yield from _list_cells(self.table, options.max_width)


def shape_table(table: Table, width: int) -> list[Table]:
    """Turn or divide a table so that it fits into a width, in cells of a terminal.

    Returns:
        The table itself, or else as few pieces as will do; none if not even two columns fit.
    """
    if _fit(table, width) is not None:
        return [table]
    turned = _turn(table)
    shapes = ([turned], _divide(table, width), _divide(turned, width))
    fitting = [
        pieces for pieces in shapes if all(_fit(piece, width) is not None for piece in pieces)
    ]
    return min(fitting, key=len, default=[])


def _turn(table: Table) -> Table:
    """Rows become columns, headed by their names, and columns rows."""
    n = _count_names(table)
    rows = [row for section in table.sections for row in section]
    names = ["\n".join(_write(cell) for cell in row[:n]) for row in rows]
    seen: Counter[str] = Counter()
    headings = []
    for name in names:
        seen[name] += 1
        headings.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    corner = Column("\n".join(_head(column) for column in table.columns[:n]))
    turned = [
        (Cell(" ".join(filter(None, (column.group, column.heading)))), *(row[i] for row in rows))
        for i, column in enumerate(table.columns)
        if i >= n
    ]
    columns = (corner, *(Column(heading, align="right") for heading in headings))
    return replace(table, columns=columns, sections=(tuple(turned),))


def _divide(table: Table, width: int) -> list[Table]:
    """Pieces that fit, of as many columns as there is room for, each behind the names."""
    n = _count_names(table)
    chosen: list[list[int]] = []
    for index in range(n, len(table.columns)):
        if chosen and _fit(_take(table, n, [*chosen[-1], index]), width) is not None:
            chosen[-1].append(index)
        else:
            chosen.append([index])
    return [_take(table, n, indices) for indices in chosen] or [table]


def _take(table: Table, n_names: int, indices: Sequence[int]) -> Table:
    kept = (*range(n_names), *indices)
    return replace(
        table,
        columns=tuple(table.columns[i] for i in kept),
        sections=tuple(
            tuple(tuple(row[i] for i in kept) for row in section) for section in table.sections
        ),
    )


def _count_names(table: Table) -> int:
    """How many columns say what a row is about: those up to the first number, at least one."""
    places = [i for i, column in enumerate(table.columns) if column.align == "right"]
    return max(1, min([*places, len(table.columns)]))


def _fit(table: Table, width: int) -> list[int] | None:
    """The width of each column; None if there is not enough for all of them.

    Numbers stay on one line. Names and headings may be broken between words.
    """
    rows = [row for section in table.sections for row in section]
    least, most = [], []
    for index, column in enumerate(table.columns):
        heading, cells = _head(column), [_write(row[index]) for row in rows]
        is_text = column.align == "left"
        firm = [word for text in cells for word in (text.split() if is_text else [text])]
        least.append(max(map(cell_len, [*firm, *heading.split(), ""])))
        most.append(max(map(cell_len, [*cells, *heading.splitlines(), ""])))
    spare = width - 3 * len(least) - 1 + 2 - sum(least)  # rules and padding, none at the edges
    if spare < 0:
        return None
    widths = []
    for low, high in zip(least, most, strict=True):
        widths.append(low + min(high - low, spare))
        spare -= widths[-1] - low
    return widths


def _draw(table: Table, widths: Sequence[int]) -> RichTable:
    drawn = RichTable(pad_edge=False)
    for column, width in zip(table.columns, widths, strict=True):
        drawn.add_column(Text(_head(column)), justify=column.align, vertical="bottom", width=width)
    for section in table.sections:
        for row in section:
            drawn.add_row(*map(_draw_cell, row))
        drawn.add_section()
    return drawn


def _list_cells(table: Table, width: int) -> Iterator[Text]:
    """A line for each cell, where not even two columns fit beside each other."""
    for section in table.sections:
        for row in section:
            yield Text("")
            for column, cell in zip(table.columns, row, strict=True):
                heading = " ".join(_head(column).split())
                line = Text.assemble((heading, "bold"), ": " if heading else "")
                fits = line.cell_len + cell_len(_write(cell)) <= width
                yield from [line + _draw_cell(cell)] if fits else [line, _draw_cell(cell)]
    yield Text("")


def _head(column: Column) -> str:
    return "\n".join(filter(None, (column.group, column.heading)))


def _write(cell: Cell) -> str:
    return _draw_cell(cell).plain


def _draw_cell(cell: Cell) -> Text:
    text = Text(cell.text, style="bold" if cell.bold else "")
    if cell.margin:
        text.append(f" ± {cell.margin}", style="not bold dim")
    if cell.remark:
        text.append(f" {cell.remark}", style="not bold dim")
    return text
