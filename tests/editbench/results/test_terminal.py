"""Tables at every width: nothing is cut, and no two columns have one heading."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from editbench.results.tables.model import Cell, Column, Table
from editbench.results.tables.terminal import draw_table, shape_table

METRICS = [
    ("Score", "S ↑"), ("Efficacy", "ES ↑"), ("Paraphrase", "PS ↑"), ("Specificity", "NS ↑"),
    ("Score", "SA ↑"), ("Efficacy", "EA ↑"), ("Paraphrase", "PA ↑"), ("Specificity", "NA ↑"),
    ("Fluency", "GE ↑"), ("Consistency", "RS ↑"), ("", "efficacy_margin ↑"),
]  # fmt: skip


def numbers(n, start):
    return [Cell(f"{start + index / 10:.1f}", f"{index / 10:.1f}", bold=True) for index in range(n)]


DEMO = Table(
    "model atlas, dataset atlas, edits 100, seed 0",
    (Column("editor"), *(Column(symbol, group, "right") for group, symbol in METRICS)),
    (((Cell("unedited"), *numbers(11, 100)), (Cell("memit"), *numbers(11, 608))),),
    ("± is half of the 95 % confidence interval over cases, its larger half if they differ.",),
    ("rome on atlas, atlas, 100 edits, seed 0 failed: no luck",),
)
GRID = Table(
    "model atlas",
    (Column("edits"), Column("editor"), *DEMO.columns[1:]),
    tuple(
        tuple(
            (Cell(str(n)), Cell("memit", remark=f"(preservation_weight={n}, n_steps=20)"), *row[1:])
            for row in DEMO.sections[0]
        )
        for n in (10, 1000)
    ),
)
COMPARISON = Table(
    "Differences to memit, seed 0",
    (
        Column("editor"),
        Column("metric"),
        *(Column(name, align="right") for name in ("value", "memit", "difference")),
        *(Column(name, align="right") for name in ("95 % interval", "p", "n")),
        Column("better"),
    ),
    tuple(
        tuple(
            (Cell(editor), Cell(metric), Cell("99.5"), Cell("98.1"), Cell("+1.4", bold=True),
             Cell("+0.2 … +2.6"), Cell("< 0.001"), Cell("100"), Cell(editor))
            for _, metric in METRICS
        )
        for editor in ("unedited", "rome")
    ),
)  # fmt: skip
TRACE = Table(
    "A window of attention outputs restored",
    (
        Column("layer", align="right"),
        *(
            Column("n = 98", role, "right")
            for role in ("first subject token", "middle subject tokens", "last subject token",
                         "first subsequent token", "further tokens", "last token")
        ),
    ),
    (tuple((Cell(str(layer)), *numbers(6, -1)) for layer in range(12)),),
)  # fmt: skip
TABLES = {"demo": DEMO, "grid": GRID, "comparison": COMPARISON, "trace": TRACE}


def draw(table, width):
    console = Console(width=width, color_system=None, force_terminal=True)
    with console.capture() as capture:
        console.print(draw_table(table))
    return capture.get()


@pytest.mark.parametrize("width", [*range(40, 201, 16), 80, 10_000])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_number_and_name_is_whole_at_any_width(table, width):
    drawn = draw(table, width)
    lines = drawn.splitlines()
    assert max(map(len, lines)) <= width
    if "…" not in str(table):
        assert "…" not in drawn
    words = set(re.split(r"[\s│┃:]+", drawn))
    for row in (row for section in table.sections for row in section):
        for column, cell in zip(table.columns, row, strict=True):
            if column.align == "right":
                number = f"{cell.text} ± {cell.margin}" if cell.margin else cell.text
                whole = re.compile(rf"(?<![\w.]){re.escape(number)}(?![\w.])")
                assert any(map(whole.search, lines))
            else:
                assert set(f"{cell.text} {cell.remark}".split()) <= words
    for column in table.columns:
        assert set(f"{column.group} {column.heading}".split()) <= words | {""}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_no_two_columns_have_one_heading(table):
    for width in range(40, 201):
        for piece in shape_table(table, width):
            headings = [(column.group, column.heading) for column in piece.columns]
            assert len(set(headings)) == len(headings)
        assert width < 50 or shape_table(table, width)


def test_the_demo_turns_in_80_columns():
    (turned,) = shape_table(DEMO, 80)
    assert [column.heading for column in turned.columns] == ["editor", "unedited", "memit"]
    assert [row[0].text for row in turned.sections[0]][:2] == ["Score S ↑", "Efficacy ES ↑"]
    assert [[cell.text for cell in row] for row in zip(*turned.sections[0], strict=True)][1:] == [
        [cell.text for cell in row[1:]] for row in DEMO.sections[0]
    ]
    assert shape_table(DEMO, 200) == [DEMO]


def test_a_long_table_falls_into_pieces_that_repeat_the_names():
    pieces = shape_table(TRACE, 80)
    assert len(pieces) == 2
    assert {piece.columns[0].heading for piece in pieces} == {"layer"}
    assert sum(len(piece.columns) - 1 for piece in pieces) == 6
    assert {len(piece.sections[0]) for piece in pieces} == {12}


def test_trials_of_one_name_are_told_apart_when_the_table_turns():
    rows = tuple((Cell("memit"), *numbers(11, 100)) for _ in range(2))
    (turned,) = shape_table(Table("", DEMO.columns, (rows,)), 80)
    assert [column.heading for column in turned.columns] == ["editor", "memit", "memit (2)"]


names = st.text("ab cλ北é", min_size=1, max_size=12).map(lambda text: text.strip() or "x")


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(names, names, st.integers(0, 10**9)), min_size=1, max_size=6),
    width=st.integers(12, 120),
)
def test_any_table_fits_into_any_width(rows, width):
    table = Table(
        "of all",
        (Column("name"), Column("kind"), *(Column(str(i), "no.", "right") for i in range(5))),
        (tuple((Cell(a), Cell(b), *[Cell(str(n), "1.0")] * 5) for a, b, n in rows),),
    )
    console = Console(width=width, color_system=None, legacy_windows=False)
    for piece in shape_table(table, width):
        options = console.options
        assert console.measure(draw_table(piece), options=options).minimum <= width
    with console.capture() as capture:
        console.print(draw_table(table))
    for _, _, number in rows:
        assert str(number) in capture.get()
