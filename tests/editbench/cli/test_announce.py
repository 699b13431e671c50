"""What commands say of long work before they begin with it."""

import json
import re
import shutil

import pytest

from editbench.cli import plan

MEMIT = ["target hidden states", "keys", "solve"]


@pytest.fixture
def all_is_long(monkeypatch):
    """Lets half a minute be nothing, so that every command's work is long."""
    monkeypatch.setattr(plan, "_LONG_SECONDS", 0.0)


@pytest.fixture
def run_options(model_folder, facts_file, memit_options):
    data = ["--model", model_folder, "--dataset", f"facts={facts_file}"]
    return ["run", *data, "--editor", "memit", *memit_options, "--out", "here"]


def stages_of(output):
    """The stages of the plan that a command announces; none if it announces none."""
    times = re.findall(r"^Plan for .* at most about [<\d ]+ \w+: (.*)\.$", output, re.MULTILINE)
    assert len(times) <= 1
    return re.findall(r"([a-z][a-z: ]+) [<\d ]+ \w+", times[0]) if times else []


def test_short_work_is_not_announced(invoke, run_options):
    result = invoke(*run_options, "--n-edits", 2)
    assert result.exit_code == 0, result.output
    assert "Plan for" not in result.output


@pytest.mark.usefixtures("all_is_long")
def test_a_run(invoke, run_options, model_folder):
    result = invoke(*run_options, "--n-edits", 2)
    assert result.exit_code == 0, result.output
    (line,) = re.findall("Plan for .*", result.output)
    assert re.match(
        rf"Plan for {re.escape(str(model_folder))}: [\d.]+k? tokens, [\d.]+ [MG]FLOP, "
        r"peak \d+ MiB on \w+ \(weights in float32: \d+ MiB\); at most about < 1 s: ",
        line,
    )
    assert stages_of(result.output) == ["answers: scores", *MEMIT]
    assert result.output.index("Plan for") < result.output.index("Run folder")


@pytest.mark.usefixtures("all_is_long")
def test_a_resumed_run_counts_what_is_left(invoke, run_options, tmp_path):
    invoke(*run_options, "--n-edits", 2, "--n-edits", 4)
    trials = [json.loads(path.read_text()) for path in tmp_path.glob("here/trials/*/trial.json")]
    assert len(trials) == 4
    edited = [each["trial"] for each in trials if each["edits"][0]["editor"] == "memit"]
    resume = [*run_options, "--n-edits", 2, "--n-edits", 4, "--resume", "--no-cache"]
    assert stages_of(invoke(*resume).output) == []
    shutil.rmtree(tmp_path / "here" / "trials" / edited[0])
    output = invoke(*resume).output
    assert stages_of(output) == [*MEMIT, "answers: scores"]
    tokens = re.search(r"Plan for .*: ([\d.]+k?) tokens", output)[1]
    fresh = invoke(*run_options[:-1], "there", "--n-edits", 2, "--n-edits", 4, "--no-cache")
    assert re.search(r"Plan for .*: ([\d.]+k?) tokens", fresh.output)[1] != tokens


def test_a_plan_of_a_resumed_run_counts_what_is_left(invoke, run_options, tmp_path):
    sizes = ["--n-edits", 2, "--n-edits", 4]
    assert invoke(*run_options, *sizes).exit_code == 0
    assert invoke(*run_options, *sizes, "--plan").stdout.count(", seed 0\n") == 4
    rest = invoke(*run_options, *sizes, "--plan", "--resume")
    assert rest.stdout.splitlines()[-1] == "Nothing is left to be done."
    before = {path: path.read_bytes() for path in tmp_path.rglob("here/**/*.json*")}
    more = invoke(*run_options, "--n-edits", 2, "--n-edits", 3, "--plan", "--resume")
    assert more.stdout.count(", seed 0\n") == 2
    assert " 3 edits, seed 0\n" in more.stdout
    assert {path: path.read_bytes() for path in tmp_path.rglob("here/**/*.json*")} == before


@pytest.mark.usefixtures("all_is_long")
def test_an_experiment(invoke, model_folder, facts_file, moments_file):
    quick = ["--set", "memit.n_steps=2", "--set", "memit.n_context_prefixes=1", "--max-edits", 1]
    result = invoke(
        "reproduce", "demonstrations", "--model", model_folder, "--dataset", f"facts={facts_file}",
        "--second-moments", moments_file, *quick, "--out", "here",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "target hidden states" in stages_of(result.output)


@pytest.mark.usefixtures("all_is_long")
@pytest.mark.parametrize(("shard", "n_tokens"), [([], "2k"), (["--shard", "2/4"], "500")])
def test_second_moments(invoke, model_folder, corpus_file, shard, n_tokens):
    result = invoke(
        "stats", "--model", model_folder, "--corpus", corpus_file, "--layers", "1", "--n-tokens",
        2000, "--out", "moments.safetensors", *shard,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert stages_of(result.output) == ["second moments"]
    assert f": {n_tokens} tokens, " in result.output


def test_a_cluster_shares_the_work(invoke, run_options, monkeypatch):
    """What is said of the time, without a cluster: the executor is not reached in a plan."""
    monkeypatch.setattr("editbench.runner.on_ray.RayExecutor", lambda address, needs: object())
    alone, shared = (
        invoke(*run_options, "--n-edits", 2, "--plan", *options)
        for options in ([], ["--executor", "ray"])
    )
    assert "working alone" not in alone.output
    assert shared.stdout.endswith("working alone; a cluster's machines share the work.\n")
