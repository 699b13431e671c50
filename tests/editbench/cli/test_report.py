"""``editbench report``: formats, comparisons and figures of a real run."""

import csv
import io
import json

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
