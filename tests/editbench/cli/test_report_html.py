"""``editbench report --html``: one file, whole or not at all, of whatever there is."""

import json
import resource

import numpy as np
import pytest

from editbench.tracing.facts import KnownFact
from editbench.tracing.folder import TraceManifest, TraceStore
from editbench.tracing.prompts import TracedPrompt
from editbench.tracing.settings import TraceSettings
from editbench.tracing.tracer import PromptTrace


@pytest.fixture
def run(invoke, model_folder, facts_file, nudging):
    result = invoke(
        "run", "--model", model_folder, "--dataset", f"facts={facts_file}", "--editor", "nudge",
        "--metrics", "success", "--out", "here", "--quiet", plugins=[nudging],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return "here"


@pytest.fixture
def trace(tmp_path):
    """Two of three planned prompts are traced."""
    settings = TraceSettings(noise_level=0.5, n_samples=3, window=2, noise_source="prompt", seed=0)
    manifest = TraceManifest(
        created="2026-01-01T00:00:00+00:00",
        model={"name": "tiny"},
        facts={"source": "facts", "n_prompts": 3},
        noise="0.5",
        spread=None,
        settings=settings,
    )
    prompt = TracedPrompt(
        fact=KnownFact("0", "Bo", "Bo is <b>", 0, "o"),
        token_ids=(1, 2, 3),
        subject=range(1),
        answer=0,
        texts=("Bo", " is", " <b>"),
        answer_text=" tall",
    )
    scores = {"hidden": np.full((3, 4), 0.25), "mlp": np.full((3, 4), np.nan)}
    scores["hidden"][0] = (0.1, 0.7, 0.8, 0.2)
    with TraceStore.open(tmp_path / "trace", manifest, resume=False) as store:
        for number in range(2):
            store.write(number, PromptTrace(prompt, 0.9, 0.1, scores))
    return "trace"


def test_a_run_becomes_a_page(invoke, run, tmp_path):
    result = invoke("report", run, "--html", "page.html")
    assert result.exit_code == 0, result.output
    assert "Page: page.html (" in result.stdout
    assert "S ↑" in result.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.rstrip().endswith("</html>")
    assert sorted(path.name for path in tmp_path.glob("*.html*")) == ["page.html"]


def test_what_programs_read_stays_whole(invoke, run):
    result = invoke("report", run, "--html", "page.html", "--format", "json")
    assert json.loads(result.stdout)
    assert "Page: page.html" in result.stderr


def test_traces_may_be_among_the_runs(invoke, run, trace, tmp_path):
    result = invoke("report", run, trace, "--compare", "nudge", "--html", "page.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "tiny: 2 prompts (trace)" in page
    assert "2 of 3 prompts are traced." in page
    assert "Bo is &lt;b&gt; →  tall" in page
    assert '<th scope="row">last subject token</th><td style="--share: 0.000">0</td>' in page
    assert "Differences to nudge" in page


def test_traces_alone(invoke, refuses, trace, tmp_path):
    result = invoke("report", trace, "--html", "page.html")
    assert result.stdout.startswith("Page: page.html")
    assert "Restored: hidden state" in (tmp_path / "page.html").read_text(encoding="utf-8")
    refuses("report", trace, says="the folder holds no run")


def test_a_fault_leaves_the_page_that_was_there(invoke, refuses, run, tmp_path):
    (tmp_path / "page.html").write_text("the old one")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        refuses("report", run, "--html", "page.html", says="no space left, got 'page.html'")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "page.html").read_text() == "the old one"


def test_places_that_cannot_be_written(refuses, run):
    refuses("report", run, "--html", "missing/page.html", says="missing")
    refuses("report", "missing", "--html", "page.html", says="the folder holds no run")
