"""The notebook about a real model runs from start to end, and says what it has recorded."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(1_800)]

NOTEBOOK = Path(__file__).parents[2] / "docs/tutorial/real-model.ipynb"


def texts(notebook):
    """What the code cells print, one text for each."""
    return [
        "".join(output.get("text", "") for output in cell.outputs if output.output_type == "stream")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.filterwarnings("ignore")  # the kernel's own
def test_it_runs_and_says_what_it_has_recorded(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("EDITBENCH_CACHE", str(tmp_path / "cache"))
    recorded = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    said = texts(notebook)
    edited = next(text for text in said if "Marie Curie" in text and "|' Warsaw" in text)
    assert "Nokia is a company from the country of |' Finland" in edited
    assert "All 3 check(s) hold." in said[-1]
    assert said[:2] == texts(recorded)[:2]
