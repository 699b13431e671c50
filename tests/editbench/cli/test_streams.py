"""``editbench run --batch-size``: from options to rows, report and figures."""

import json

import pytest


@pytest.fixture
def stream(invoke, model_folder, facts_file, nudging):
    """Runs the quick editor 'nudge' on six facts, two at a time."""

    def run(*arguments, command="run"):
        options = ["--editor", "nudge", "--model", model_folder, "--dataset", f"facts={facts_file}"]
        options += ["--batch-size", 2, *arguments]
        return invoke(command, *options, plugins=[nudging])

    return run


def test_a_stream_from_the_command_line(invoke, stream):
    result = stream("--checkpoint", 2, "--checkpoint", 4, "--out", "here")
    assert result.exit_code == 0, result.output
    assert "batches of 2" in result.stdout
    lines = json.loads(invoke("report", "here", "--format", "json").stdout)
    found = {(line["editor"], line["checkpoint"], line["batch_size"], line["n"]) for line in lines}
    assert found == {(editor, n, 2, n) for editor in ("nudge", "unedited") for n in (2, 4, 6)}
    result = invoke("report", "here", "--figures", "figures", "--html", "page.html")
    assert result.exit_code == 0, result.output
    assert "Figure: figures/streams.png" in result.stdout
    assert "Figure: figures/retention.png" in result.stdout
    assert stream("--checkpoint", 2, "--checkpoint", 4, "--out", "here", "--resume").exit_code == 0


def test_a_stream_that_stops_says_so(invoke, stream):
    result = stream("--checkpoint", 2, "--stop-when", "efficacy_success<101", "--out", "here")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Stopped: ")]
    assert "nudge on " in line
    assert "after 2 of 6 facts: efficacy_success" in line
    assert "stopped after 2 of 6 facts" in invoke("report", "here").stdout.replace("\n", " ")


def test_what_a_rule_goes_by_is_measured(invoke, stream):
    rule = ["--stop-when", "neighborhood_divergence>99"]
    result = stream("--metrics", "success", *rule, "--out", "here")
    assert result.exit_code == 0, result.output
    lines = json.loads(invoke("report", "here", "--format", "json").stdout)
    assert {"efficacy_success", "neighborhood_divergence"} <= {line["metric"] for line in lines}


def test_a_plan_has_every_batch_and_checkpoint(stream):
    def count(*options):
        result = stream("--plan", *options)
        assert result.exit_code == 0, result.output
        return [line for line in result.stdout.splitlines() if line.startswith("  answers: scores")]

    at_the_end, often = count(), count("--checkpoint", 2, "--checkpoint", 4)
    assert len(at_the_end) == len(often) == 2  # unedited, and nudge
    assert at_the_end[0] == often[0]  # the unedited model is asked once
    assert at_the_end[1] != often[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--batch-size", 2, "--checkpoint", 3], "no batch ends at a checkpoint, got 3 of 6"),
        (["--batch-size", 2, "--checkpoint", 8], "--checkpoint: so many facts are never written"),
        (["--batch-size", 2, "--stop-when", "score=3"], "--stop-when: no rule, got 'score=3'"),
        (["--batch-size", 2, "--stop-when", "scor<3"], "'scor'. Did you mean 'score'?"),
        (["--batch-size", 2, "--min-cases", 30], "Leave out --min-cases"),
        (["--checkpoint", 2], "Give --batch-size"),
        (["--stop-when", "score<3"], "Give --batch-size"),
    ],
)
def test_what_does_not_go_together_is_refused(
    refuses, model_folder, facts_file, nudging, options, says
):
    given = ["run", "--editor", "nudge", "--model", model_folder]
    given += ["--dataset", f"facts={facts_file}", "--n-edits", 6, "--out", "here"]
    refuses(*given, *options, says=says, plugins=[nudging])
