"""The benchmarks' commands run; at a size at which their figures mean nothing."""

import contextlib
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
from click.testing import CliRunner

from editbench.cli.main import build_cli
from editbench.plugins.manager import load_plugins

pytestmark = pytest.mark.thorough

REPOSITORY = Path(__file__).parents[2]
BENCHMARKS = REPOSITORY / "benchmarks"
WORK = REPOSITORY.parent / "shared" / "reference" / "speed"


def run(
    name: str, *arguments: str, out: Path, in_own_process: bool = False
) -> list[dict[str, object]]:
    """Run a benchmark in the folder in which its command is given; return the recorded rows.

    Most run in this process: another one takes longer to import everything than to run them.
    """
    command = [f"benchmarks/{name}.py", *arguments, "--threads", "1", "--out", str(out)]
    if "--repeats" not in arguments:
        command += ["--repeats", "1"]
    if in_own_process:
        own = [sys.executable, *command]
        ended = subprocess.run(own, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr[-2000:]
    else:
        with (
            patch.object(sys, "argv", command),
            patch.object(sys, "path", [str(BENCHMARKS), *sys.path]),
            contextlib.chdir(REPOSITORY),
        ):
            importlib.import_module(name).main()
    record = json.loads(out.read_text())
    assert record["benchmark"] == name
    assert record["command"].startswith(f"python benchmarks/{name}.py")
    rows: list[dict[str, object]] = record["rows"]
    return rows


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("target_hidden", ("--n-edits", "2", "--n-slow", "1", "--n-steps", "3")),
        ("insertion", ("--n-edits", "2")),
        ("evaluation", ("--n-records", "1")),
        ("second_moments", ("--n-tokens", "100")),
        ("solve", ("--d", "64", "--n", "1", "8")),
    ],
)
def test_sides_agree(name: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    if name != "solve" and not WORK.exists():
        pytest.skip(f"the work to be timed is not there: {WORK}")
    for row in run(name, *arguments, out=tmp_path / "record.json"):
        assert row["ratio"] > 0
        assert row["difference"] < 1e-4


def test_three_scorers_are_timed_beside_two(tmp_path: Path) -> None:
    sizes = ("--n-cases", "3", "--counterfact", "none.json")
    (row,) = run("three_scorers", *sizes, out=tmp_path / "record.json")
    assert row["model"] == "atlas"
    assert row["two_scorers"] > 0
    assert row["three_scorers"] / row["two_scorers"] == row["times_as_long"]
    assert row["tokens_of_a_text"] > 1


def test_every_form_is_served(tmp_path: Path) -> None:
    folder, adapter = run(
        "serving", "--models", "atlas", "--n-edits", "2", out=tmp_path / "record.json"
    )
    assert (folder["form"], adapter["form"]) == ("folder", "peft adapter")
    assert adapter["n_bytes"] < folder["n_bytes"]
    for row in (folder, adapter):
        assert row["n_same_texts"] >= 0.95 * row["n_prompts"] == 0.95 * 22
        assert row["n_said"] == row["n_said_computed"]


def test_kinds_of_facts_are_asked_three_ways(tmp_path: Path) -> None:
    sizes = ("--model", "atlas", "--counts", "2", "--lengths", "1")
    rows = run("kinds_of_facts", *sizes, out=tmp_path / "record.json")
    assert [(row["what"], row["n_facts"], row["n_at_once"]) for row in rows] == [
        ("a subject each", 40, 10), *2 * [("2 about a subject", 40, 10)],
        ("an answer of 1 token", 6, 6), ("a list of three", 6, 6),
        *2 * [("its three members apart", 18, 18)],
    ]  # fmt: skip
    for row in rows:  # a token that is the likeliest is what the model says
        assert 0 <= row["argmax"] <= row["said"] <= 100
        assert 0 <= row["neighbors_unchanged"] <= 100


def test_streams_are_set_against_single_edits(tmp_path: Path) -> None:
    sizes = ("--n-batches", "2", "--batch-size", "2", "--d-key", "64")
    editors = ("--editors", "memit-history", "ultraedit")
    rows = run("streams", *sizes, *editors, out=tmp_path / "record.json")
    assert [row["what"] for row in rows] == [
        "memit-history, 2 batches of 2", "ultraedit, 2 batches of 2",
        "memit-history, 2 batches of 2",
    ]  # fmt: skip
    for row in rows:
        assert row["cost"] == pytest.approx(row["stream_seconds"] / row["single_seconds"])


def test_plans_are_compared_with_what_work_takes(tmp_path: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from Linux's /proc")
    rows = run(
        "plans", "--n-edits", "2", "--what", "ft-w", "questions", out=tmp_path / "record.json"
    )
    whats = [row["what"] for row in rows]
    assert whats == [
        "ft-w: fine-tuning",
        "questions: answers: scores",
        "questions: texts",
        "all of it",
    ]
    for row in rows:
        assert row["planned"] > 0 < row["measured"]
        assert row["planned_mib"] > 0 < row["measured_mib"]


def test_whole_edit_times_both_with_and_without_answers(tmp_path: Path) -> None:
    if not WORK.exists():
        pytest.skip(f"the work to be timed is not there: {WORK}")
    sizes = ("--n-edits", "2", "--n-slow", "1", "--n-steps", "3")
    edit, with_answers = run("whole_edit", *sizes, out=tmp_path / "record.json")
    assert edit["what"] == "whole edit, n = 2"
    for side in ("slow", "fast"):
        assert 0 < edit[side] < with_answers[side]


def test_cells_of_a_trace_agree(tmp_path: Path) -> None:
    sizes = ("--models", "atlas", "--n-prompts", "1")
    (row,) = run("causal_trace", *sizes, out=tmp_path / "record.json")
    assert row["model"] == "atlas"
    assert row["replay_failure"] is None
    assert row["difference"] < 1e-4
    assert row["ratio"] > 1


def test_solves_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    sizes = ("--d", "64", "128", "3000000", "--n", "1", "--most-repeated", "64")
    rows = run("solve", *sizes, "--repeats", "2", out=out)
    assert [(row["what"], row["repeats"]) for row in rows] == [
        ("primal, n = 1, d = 64", 2),
        ("cached, n = 1, d = 64", 2),
        ("primal, n = 1, d = 128", 1),
        ("cached, n = 1, d = 128", 1),
    ]
    assert json.loads(out.read_text())["settings"]["left_out"] == ["n = 1, d = 3,000,000"]


@pytest.mark.slow
def test_growth_measures_processes_of_their_own(tmp_path: Path) -> None:
    # What a process has held at most, its children have, too, as the system counts.
    out = tmp_path / "record.json"
    one, more = run("growth", "--n-edits", "1", "40", out=out, in_own_process=True)
    assert (one["n"], more["n"]) == (1, 40)
    assert 0 < one["seconds"] < more["seconds"]
    assert 1e8 < one["peak_bytes"] < more["peak_bytes"]
    assert 0 < one["planned_bytes"] < more["planned_bytes"]
    grown = 39 * more["peak_bytes_a_fact"]
    assert grown == pytest.approx(more["peak_bytes"] - one["peak_bytes"])


@pytest.mark.slow
def test_sampling_errors_are_what_was_promised(tmp_path: Path) -> None:
    rows = run("sampling_error", "--factor", "1", out=tmp_path / "record.json")
    assert len(rows) == 3
    for row in rows:
        assert row["n_compared"] >= row["n_sampled"] > 1_000
        assert 0 < row["excess"] < 0.3  # two samples as large as each other, both at fault


def test_half_precision_is_close_to_float32(tmp_path: Path) -> None:
    if not WORK.exists():
        pytest.skip(f"the work to be timed is not there: {WORK}")
    sizes = ("--n-edits", "2", "--n-tokens", "2000", "--n-random", "1", "--n-steps", "3")
    rows = run("half_precision", *sizes, out=tmp_path / "record.json")
    assert [row["dtype"] for row in rows] == 2 * ["float32", "bfloat16", "float16"]
    assert all(row["n_overflowed"] == 0 for row in rows)
    assert all(row["replay_failure"] is None for row in rows)
    for row in rows[::3]:
        assert row["offset_worst"] == row["state_worst"] == 0
        assert row["mean_loss_in_float32"] == pytest.approx(row["mean_loss"], rel=1e-4)
    for row in (rows[1], rows[4]):
        # Of a hundred facts eight are off by more than 5 %, none by 10: two may be among these.
        assert 1e-4 < row["offset_median"] <= row["offset_worst"] < 0.1
        assert row["cosine_least"] > 0.995
    for bfloat16, float16 in ((rows[1], rows[2]), (rows[4], rows[5])):
        assert 0 < float16["state_worst"] < bfloat16["state_worst"]  # three bits more
    for row in rows[:3]:  # two facts; with a hundred the table shows as much
        assert row["efficacy_success"] == row["efficacy_accuracy"] == 100


@pytest.mark.slow
def test_options_of_z_are_set_against_none(tmp_path: Path) -> None:
    sizes = ("--n-edits", "4", "--n-several", "60", "--n-tokens", "2000")
    rows = run("options", *sizes, out=tmp_path / "record.json")
    assert [row["option"] for row in rows] == [
        "–", "stop_at=argmax", "warm_start=true", "–", "share_subjects=true"
    ]  # fmt: skip
    plain, argmax, _, apart, shared = rows
    assert plain["ratio"] == apart["ratio"] == 1
    assert argmax["mean_steps"] < plain["mean_steps"]
    assert argmax["mean_loss"] > plain["mean_loss"]
    assert shared["n_offsets"] < apart["n_offsets"] == 60
    assert shared["mean_loss"] > apart["mean_loss"]  # one offset for two facts
    for row in rows:
        assert row["replay_failure"] is None
        assert 80 < row["score"] <= 100


def test_counts_are_of_what_runs(tmp_path: Path) -> None:
    if not WORK.exists():
        pytest.skip(f"the work to be timed is not there: {WORK}")
    sizes = ("--n-edits", "2", "--n-requests", "40", "--n-tokens", "5000", "--n-samples", "1")
    sizes += ("--shapes", "gptj")
    rows = run("counts", *sizes, out=tmp_path / "record.json")
    target, start, later = (row for row in rows if "slow_operations" in row)
    assert 10 < target["ratio"] < target["ratio_of_steps"]
    assert 0.1 < target["setup_share"] < 0.5
    assert 5 < start["ratio"] < later["ratio"]  # the further back a subject is, the less is left
    published, all_layers = (row["forwards"] for row in rows if "forwards" in row)
    assert 1 < published < 1.5 < all_layers
    padding = {row["what"]: row["padding"] for row in rows if "padding" in row}
    assert len(padding) == 8
    assert all(0 <= share < 0.6 for share in padding.values())
    assert padding["text, atlas, 5,000 tokens, CPU"] < 0.05
    few, many = (padding[f"z, CounterFact's lengths, n = 40, {name}"] for name in ("CPU", "GPU"))
    assert few < many  # larger chunks


def write_tables(folder: Path, *arguments: str) -> tuple[str, str]:
    """The tables of records of CPUs and of GPUs."""
    command = [sys.executable, "benchmarks/write_table.py", str(folder), *arguments]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return (folder / "benchmarks.md").read_text(), (folder / "gpu_benchmarks.md").read_text()


def test_the_tables_hold_every_record(tmp_path: Path) -> None:
    texts = write_tables(tmp_path)
    results = REPOSITORY / "benchmarks" / "results"
    for text, folder in zip(texts, (results, results / "gpu"), strict=True):
        for path in folder.glob("*.json"):
            record = json.loads(path.read_text())
            assert record["command"] in text
            keys = ("what", "stage", "form")
            names = [next(row[key] for key in keys if key in row) for row in record["rows"]]
            assert all(f"| {name} |" in text for name in names)


def test_a_row_of_no_table_is_an_error(tmp_path: Path) -> None:
    record = {
        "benchmark": "x", "command": "python benchmarks/x.py", "repeats": 1, "settings": {},
        "machine": {"cores": 1, "threads": 1, "torch": "2"}, "rows": [{"what": "x", "odd": 1}],
    }  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(record))
    command = [sys.executable, "benchmarks/write_table.py", str(tmp_path)]
    command += ["--results", str(tmp_path)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "no table for a row with what, odd" in ended.stderr


def load(name: str) -> ModuleType:
    with patch.object(sys, "path", [str(BENCHMARKS), *sys.path]):
        return importlib.import_module(name)


def test_facts_borrow_probes_of_facts_like_them() -> None:
    facts = [
        {
            "case_id": str(place),
            "subject": subject,
            "target_true": true,
            "relation": "sport",
            "paraphrases": [f"So. {subject} plays"],
            "neighbors": [{"prompt": f"{neighbor} likes", "target": true}],
        }
        for place, (subject, true, neighbor) in enumerate(
            [("Ann", "chess", "Bob"), ("Bob", "chess", "Eve"), ("Cyd", "golf", "Dan")]
        )
    ]
    facts[1]["paraphrases"] = ["Well. Bob is known for"]
    found = load("more_probes").add_probes(facts, 2, 8)
    assert found[0]["paraphrases"][0] == "So. Ann plays"
    assert found[0]["paraphrases"][1] == "Well. Ann is known for"
    assert [each["prompt"] for each in found[0]["neighbors"]] == ["Bob likes", "Eve likes"]
    # A neighbor that is the fact's own subject would be no neighbor.
    assert [each["prompt"] for each in found[1]["neighbors"]] == ["Eve likes"]
    assert [each["prompt"] for each in found[2]["neighbors"]] == ["Dan likes"]


def test_the_record_of_a_search_says_what_trials_came_to(tmp_path: Path) -> None:
    out, record = tmp_path / "found.yaml", tmp_path / "record.json"
    command = [
        "tune", "--model", "atlas", "--dataset", "atlas", "--n-edits", "2", "--min-cases", "2",
        "--trials", "2", "--set", "memit.n_steps=1", "--set", "memit.second_moment_tokens=2000",
        "--cache", str(tmp_path / "cache"), "--out", str(out),
    ]  # fmt: skip
    plugins = load_plugins()
    CliRunner().invoke(build_cli(plugins), command, obj=plugins, catch_exceptions=False)
    with patch.object(sys, "argv", ["", str(tmp_path / "found.search"), "--out", str(record)]):
        load("settings_record").main()
    (search,) = json.loads(record.read_text())
    assert search["about"]["editor"] == "memit"
    first, second = search["trials"]
    assert first["state"] == "complete"
    assert first["drawn"] != second["drawn"]
    assert set(first["measured"]) >= {"efficacy_success", "neighborhood_success"}
