"""Tables in the paper's form, in every format."""

import re

import pytest

from editbench.results.manifest import MetricDescription
from editbench.results.report import Summary, summarize
from editbench.results.tables.markup import write_latex, write_markdown
from editbench.results.tables.model import Cell, Column, Table, format_number
from editbench.results.tables.summary_table import tabulate_summary

HARSH_NAME = r"x_1 & {y} \ ~^$|*<b>"
HARSH = Table(
    title="50 % of a_b & c#d",
    columns=(Column("editor"), Column("S ↑", "Score", "right"), Column("PPL ↓", "", "right")),
    sections=(
        (
            (
                Cell(r"x_1 & {y} \ ~^$|*<b>", remark="(λ=1)"),
                Cell("1.0", "0.5", bold=True),
                Cell("–"),
            ),
        ),
        ((Cell("b"), Cell("−2.0"), Cell("3.0")),),
    ),
    notes=("± is 95 %.",),
    warnings=("slow_one failed: 100 % out\nof luck",),
)


@pytest.fixture
def summary(write_run, describe) -> Summary:
    """Two editors, one that does nothing, and the unedited model, which is best in two metrics."""
    trials = {
        name: describe(editor=name, config={})
        for name in ("zap", "memit", "rome", "unedited", "ft-w")
    }
    values = {
        "unedited": {
            "efficacy_success": [0, 0, 0, 100],
            "neighborhood_success": [100, 100, 100, 100],
            "perplexity": [10.0, 10.0, 10.0, 10.0],
        },
        "memit": {
            "efficacy_success": [100, 100, 100, 100],
            "neighborhood_success": [75, 75, 75, 75],
            "perplexity": [20.0, 20.0, 20.0, 20.0],
        },
        "rome": {
            "efficacy_success": [100, 100, 100, 100],
            "neighborhood_success": [50, 50, 50, 50],
            "perplexity": [15.0, 15.0, 15.0, 15.0],
        },
        "ft-w": {
            "efficacy_success": [0, 0, 0, 100],
            "neighborhood_success": [50, 50, 75, 75],
            "perplexity": [30.0, 30.0, 30.0, 30.0],
        },
        "zap": {"efficacy_success": [0, 0, 100, 100]},
    }
    return summarize([write_run(trials, values)])


def cells_of(summary: Summary) -> dict[str, dict[str, Cell]]:
    table = tabulate_summary(summary)
    headings = [column.heading for column in table.columns]
    return {
        row[headings.index("editor")].text: dict(zip(headings, row, strict=True))
        for section in table.sections
        for row in section
    }


def test_columns_and_rows_stand_as_in_the_paper(summary):
    table = tabulate_summary(summary)
    assert [(column.group, column.heading) for column in table.columns] == [
        ("", "editor"), ("Score", "S ↑"), ("Efficacy", "ES ↑"), ("Specificity", "NS ↑"),
        ("Perplexity", "PPL ↓"),
    ]  # fmt: skip
    assert list(cells_of(summary)) == ["unedited", "ft-w", "rome", "memit", "zap"]


def test_the_best_is_bold_and_the_unedited_model_does_not_compete(summary):
    cells = cells_of(summary)
    bold = {
        (editor, heading)
        for editor, row in cells.items()
        for heading, cell in row.items()
        if cell.bold
    }
    assert bold == {
        ("memit", "S ↑"),
        ("memit", "ES ↑"), ("rome", "ES ↑"),  # the same in print
        ("memit", "NS ↑"),  # unedited has 100
        ("rome", "PPL ↓"),  # lower is better; unedited has 10
    }  # fmt: skip
    assert any("Bold: the best editor" in note for note in tabulate_summary(summary).notes)


def test_one_editor_alone_is_not_the_best(write_run, describe):
    trials = {name: describe(editor=name, config={}) for name in ("unedited", "memit")}
    values = {name: {"efficacy_success": [0.0, 100.0]} for name in trials}
    table = tabulate_summary(summarize([write_run(trials, values)]))
    assert not any(cell.bold for section in table.sections for row in section for cell in row)
    assert not any("Bold" in note for note in table.notes)


def test_an_editor_that_changed_nothing_does_not_compete(tmp_path, plan, describe, record, rows):
    from editbench.results.store import RunStore

    trials = [describe(editor=editor, config={}) for editor in ("lazy", "memit", "rome")]
    with RunStore.open(tmp_path / "run", plan(*trials), resume=False) as store:
        for trial, status, value in zip(
            trials, ("no_effect", "ok", "ok"), (100.0, 50.0, 40.0), strict=True
        ):
            store.write(
                record(trial, status), rows(trial, {"neighborhood_success": [value] * 3}, status)
            )
    cells = cells_of(summarize([tmp_path / "run"]))
    assert [row["NS ↑"].bold for row in cells.values()] == [False, True, False]
    assert cells["lazy"]["editor"].remark == "changed nothing"


def test_the_margin_is_the_larger_half_of_the_interval(summary):
    cells = cells_of(summary)
    # Standard deviation of 0, 0, 0, 100: 50; 1.96 · 50 / √4 = 49, cut off at 0.
    assert (cells["ft-w"]["ES ↑"].text, cells["ft-w"]["ES ↑"].margin) == ("25.0", "49.0")
    assert cells["memit"]["ES ↑"].margin == "0.0"
    assert cells["zap"]["PPL ↓"] == Cell("–")


def test_symbols_are_explained(summary):
    text = " ".join(tabulate_summary(summary).notes)
    assert "S: harmonic mean of ES, NS" in text
    assert "PPL: perplexity of held-out text" in text
    assert "Rates in %." in text


def test_a_metric_of_a_plugin_has_its_own_name(write_run, describe):
    metrics = [
        MetricDescription(
            name="x", version=1, produces=("my_rank",), bounds=(0.0, None), higher_is_better=False
        )
    ]
    trials = {name: describe(editor=name, config={}) for name in ("rome", "memit")}
    values = {"rome": {"my_rank": [3.0, 3.0]}, "memit": {"my_rank": [2.0, 2.0]}}
    cells = cells_of(summarize([write_run(trials, values, metrics=metrics)]))
    assert cells["memit"]["my_rank ↓"].bold
    assert not cells["rome"]["my_rank ↓"].bold


@pytest.mark.parametrize(
    ("value", "text"), [(98.95, "99.0"), (0.04, "0.0"), (123456.0, "123456.0"), (3.2e8, "3.20e+08")]
)
def test_numbers(value, text):
    assert format_number(value) == text


def parse_markdown(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]  # escaped ones are text
        for line in lines
    ]


def test_markdown_is_a_table(summary):
    header, rule, *rows = parse_markdown(write_markdown(tabulate_summary(summary)))
    assert header == ["editor", "S ↑", "ES ↑", "NS ↑", "PPL ↓"]
    assert rule == ["---", "---:", "---:", "---:", "---:"]
    assert [len(row) for row in rows] == [5] * 5
    assert rows[0][0] == "unedited"
    assert rows[3][2] == "**100.0** ± 0.0"


def test_markdown_escapes_what_it_would_read(summary):
    text = write_markdown(HARSH)
    header, _, first, second = parse_markdown(text)
    assert [len(row) for row in (header, first, second)] == [3, 3, 3]
    assert first[0] == r"x\_1 & {y} \\ \~^\$\|\*\<b\> (λ=1)"
    assert first[1] == "**1.0** ± 0.5"
    assert "**slow\\_one failed: 100 % out of luck**" in text


def test_latex_has_the_rules_of_booktabs_and_nothing_unescaped():
    text = write_latex(HARSH)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    for environment in ("table", "tabular"):
        assert body.count(f"\\begin{{{environment}}}") == 1
        assert body.count(f"\\end{{{environment}}}") == 1
    rules = re.findall(r"\\(\w+)rule", body)
    assert rules == ["top", "mid", "mid", "bottom"]
    without_escapes = re.sub(r"\\[&%$#_{}]", "", body)
    assert without_escapes.count("{") == without_escapes.count("}")
    assert without_escapes.count("$") % 2 == 0
    for special in "%#_~^<>":
        assert special not in without_escapes
    assert not re.search(r"[^\x00-\x7f]", body)
    rows = [line for line in without_escapes.splitlines() if line.endswith(r"\\")]
    assert [row.count("&") for row in rows] == [2, 2, 2, 2]
    assert r"\textbf{1.0} $\pm$ 0.5" in body
    assert r"S $\uparrow$" in body
    assert r"\caption{50 \% of a\_b \& c\#d." in body
    assert text.startswith("% slow_one failed: 100 % out of luck\n")


def test_latex_of_a_report(summary):
    body = write_latex(tabulate_summary(summary))
    assert r"\begin{tabular}{lrrrr}" in body
    assert r"memit & \textbf{85.7} $\pm$ 0.0 & \textbf{100.0} $\pm$ 0.0" in body
    assert body.count("{") == body.count("}")


@pytest.mark.parametrize("write", [write_markdown, write_latex])
def test_nothing_but_warnings(write):
    text = write(Table("", (Column("editor"),), (), warnings=("1 trial(s) to come.",)))
    assert "1 trial(s) to come." in text
    assert "tabular" not in text
    assert "|" not in text
