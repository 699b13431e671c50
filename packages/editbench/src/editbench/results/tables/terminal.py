"""A table in the terminal."""

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from editbench.results.tables.model import Cell, Table


def draw_table(table: Table) -> RenderableType:
    """Lay a table out for a rich console."""
    parts: list[RenderableType] = []
    if not table.is_empty:
        drawn = RichTable(title=Text(table.title), title_justify="left", pad_edge=False)
        for column in table.columns:
            heading = "\n".join(filter(None, (column.group, column.heading)))
            drawn.add_column(Text(heading), justify=column.align, vertical="bottom")
        for section in table.sections:
            for row in section:
                drawn.add_row(*(_draw_cell(cell) for cell in row))
            drawn.add_section()
        parts.append(drawn)
        parts += [Text(note, style="dim") for note in table.notes]
    return Group(*parts, *(Text(warning, style="yellow") for warning in table.warnings))


def _draw_cell(cell: Cell) -> Text:
    text = Text(cell.text, style="bold" if cell.bold else "")
    if cell.margin:
        text.append(f" ± {cell.margin}", style="not bold dim")
    if cell.remark:
        text.append(f" {cell.remark}", style="not bold dim")
    return text
