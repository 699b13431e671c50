"""``editbench report``: formats, comparisons and figures of a real run."""

import csv
import io
import json
from pathlib import Path

import pytest


@pytest.fixture
def run(invoke, model_folder, facts_file, nudging):
    """Two settings of a quick editor beside the unedited model."""
    result = invoke(
        "run", "--model", model_folder, "--dataset", f"facts={facts_file}", "--editor", "nudge",
        "--set", "nudge.size=0.5", "--metrics", "success", "--out", "here", "--quiet",
        plugins=[nudging],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return "here"


def test_formats_for_people(invoke, run):
    markdown = invoke("report", run, "--format", "markdown").stdout
    assert "| editor | S ↑ | ES ↑ | PS ↑ | NS ↑ |" in markdown
    latex = invoke("report", run, "--format", "latex").stdout
    assert r"\begin{tabular}{lrrrr}" in latex
    table = invoke("report", run).stdout
    assert "S ↑" in table
    assert "harmonic mean of ES, PS, NS" in table


def test_comparison_in_every_format(invoke, run, tmp_path):
    result = invoke("report", run, "--compare", "nudge")
    assert result.exit_code == 0
    assert "Differences to nudge" in result.stdout
    found = json.loads(invoke("report", run, "--compare", "nudge", "--format", "json").stdout)
    assert {each["editor"] for each in found} == {"unedited"}
    assert {each["baseline"] for each in found} == {"nudge"}
    text = invoke("report", run, "--compare", "nudge", "--format", "csv").stdout
    assert len(list(csv.DictReader(io.StringIO(text)))) == len(found) == 4
    assert (
        "| metric |" in invoke("report", run, "--compare", "nudge", "--format", "markdown").stdout
    )
    invoke("report", run, "--compare", "nudge", "--format", "latex", "--output", "table.tex")
    assert r"\toprule" in (tmp_path / "table.tex").read_text()


def test_an_unknown_editor_is_refused(refuses, run):
    refuses("report", run, "--compare", "nuge", says=["Did you mean 'nudge'?", "nudge, unedited"])


def test_figures(invoke, run, tmp_path):
    result = invoke("report", run, "--figures", "pictures")
    names = [f"editors.{end}" for end in ("png", "svg", "csv")]
    assert result.stdout.splitlines()[-3:] == [f"Figure: pictures/{name}" for name in names]
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == set(names)


def test_what_a_program_reads_stays_whole(invoke, run):
    result = invoke("report", run, "--figures", "pictures", "--format", "json")
    assert json.loads(result.stdout)
    assert "Figure: pictures/editors.png" in result.stderr


def test_a_place_that_cannot_be_written_is_refused(invoke, run, tmp_path):
    (tmp_path / "taken").write_text("")
    result = invoke("report", run, "--figures", "taken", "--format", "json", "--output", "x.json")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


@pytest.fixture
def scored(invoke, model_folder, facts_file, nudging):
    """The same with all scorers, with neighbors behind the fact, and text of the user's own."""
    Path("ordinary.txt").write_text("Ana met Bo in the old town.\nThe weather was warm.\n")
    result = invoke(
        "run", "--model", model_folder, "--dataset", f"facts={facts_file}", "--editor", "nudge",
        "--set", "nudge.size=0.5", "--held-out-text", "ordinary.txt", "--out", "scored",
        "--metrics", "success,accuracy,generation-match,generation-exact,counterfact-plus",
        "--metrics", "divergence,perplexity", "--quiet",
        plugins=[nudging],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return "scored"


def test_all_scorers_stand_together_and_the_table_says_how(invoke, scored):
    text = invoke("report", scored, "--format", "markdown").stdout
    header = next(line for line in text.splitlines() if line.startswith("| editor"))
    assert " ES ↑ | EA ↑ | EG ↑ | EX ↑ | PS ↑ | PA ↑ | PG ↑ |" in header
    assert "| NS+ ↑ | NM+ ↑ | NKL ↓ | TKL ↓ | PPL ↓ |" in header
    for said in (
        "How: batches of ",
        "conflicts: none",
        "share their subject",
        "generation-match 1",
    ):
        assert said in text
    lines = json.loads(invoke("report", scored, "--format", "json").stdout)
    found = {(line["editor"], line["metric"]): line for line in lines}
    assert found["unedited", "text_divergence"]["value"] == 0
    assert found["nudge", "text_divergence"]["value"] > 0
    assert found["nudge", "neighborhood_divergence"]["value"] > 0
    assert found["nudge", "perplexity"]["n"] == found["nudge", "text_divergence"]["n"] == 2


@pytest.mark.parametrize(
    ("style", "columns"),
    [
        ("paper", ["S ↑", "ES ↑", "PS ↑", "NS ↑"]),
        ("alphaedit", ["Eff. ↑", "Gen. ↑", "Spe. ↑"]),
        ("easyedit", ["Rel. ↑", "Gen. ↑", "Loc. ↑"]),
    ],
)
def test_styles_have_the_columns_of_their_convention(invoke, scored, style, columns):
    text = invoke("report", scored, "--style", style, "--format", "markdown").stdout
    header = next(line for line in text.splitlines() if line.startswith("| editor"))
    assert [cell.strip() for cell in header.strip("| ").split("|")] == ["editor", *columns]


def test_honest_style_has_everything_by_what_it_is_about(invoke, scored):
    text = invoke("report", scored, "--style", "honest", "--format", "markdown").stdout
    header = next(line for line in text.splitlines() if line.startswith("| editor"))
    assert "NS ↑ | NA ↑ | NG ↑ | NX ↑ | NS+ ↑ | NM+ ↑ | NKL ↓ | TKL ↓ | PPL ↓" in header


def test_scorers_are_compared_and_drawn(invoke, scored, tmp_path):
    text = invoke("report", scored, "--compare", "unedited").stdout
    assert "How: batches of" in text
    assert all(symbol in text for symbol in ("ES ↑", "EA ↑", "EG ↑", "NS+ ↑", "NKL ↓"))
    result = invoke("report", scored, "--figures", "figures")
    assert result.exit_code == 0, result.output
    drawn = list(
        csv.DictReader(io.StringIO((tmp_path / "figures/editors_scorers.csv").read_text()))
    )
    assert {(point["panel"], point["x"]) for point in drawn} >= {
        ("Efficacy", "0.0"), ("Efficacy", "1.0"), ("Efficacy", "2.0"), ("Specificity", "2.0"),
    }  # fmt: skip
    assert {point["series"] for point in drawn} == {"nudge", "unedited"}


def test_page_has_what_was_said(invoke, scored, tmp_path):
    from editbench.results.collection import collect
    from editbench.results.html.case_book import gather_cases

    book = gather_cases([tmp_path / scored], collect([tmp_path / scored]))
    said = [texts for case in book.cases for texts in case.said.values()]
    assert len(said) == 2 * len(book.cases)
    assert all(isinstance(text, str) for texts in said for text in texts)
    assert invoke("report", scored, "--html", "page.html").exit_code == 0
