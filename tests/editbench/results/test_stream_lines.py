"""What is left of facts of a stream, by their age, and the figures of streams."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from editbench.results.figures import draw_figures
from editbench.results.manifest import RunManifest, TrialDescription
from editbench.results.report import summarize
from editbench.results.row import Row
from editbench.results.store import RunStore
from editbench.results.stream_records import CheckpointRecord, FactRecord


@pytest.fixture
def write_stream(tmp_path, plan, record, describe) -> Callable[..., Path]:
    """Writes streams of facts of which `held` says whether they held, at the end and halfway."""

    def write(
        held: dict[str, Sequence[Sequence[bool]]], batch_size: int = 2, superseded: int = -1
    ) -> Path:
        trials: list[tuple[TrialDescription, Sequence[bool]]] = []
        for editor, orders in held.items():
            for seed, facts in enumerate(orders):
                n = len(facts)
                description = describe(
                    editor=editor, n_edits=n, seed=seed, sample="shuffled", batch_size=batch_size,
                    checkpoints=(n // 2, n),
                )  # fmt: skip
                trials.append((description, facts))
        manifest: RunManifest = plan(*(description for description, _ in trials))
        with RunStore.open(tmp_path / "run", manifest, resume=False) as store:
            for trial, facts in trials:
                rows = [
                    Row(
                        trial=trial.hash, editor=trial.editor, model=trial.model,
                        dataset=trial.dataset, n_edits=trial.n_edits, seed=trial.seed,
                        case_id=f"case {place}", metric="efficacy_success", value=100.0 * is_held,
                        status="ok", batch_size=batch_size, checkpoint=n_written,
                    )
                    for n_written in trial.checkpoints
                    for place, is_held in enumerate(facts[:n_written])
                    if place != superseded
                ]  # fmt: skip
                told = [
                    FactRecord(case_id=f"case {place}", batch=place // batch_size)
                    for place in range(len(facts))
                ]
                checkpoints = [CheckpointRecord(n_written=n) for n in trial.checkpoints]
                store.write(record(trial, facts=told, checkpoints=checkpoints), rows)
        return tmp_path / "run"

    return write


def ages(folder: Path) -> list[tuple[float, float, int]]:
    return [(line.age, line.value, line.n) for line in summarize([folder]).retention]


def test_age_is_how_many_facts_were_written_since(write_stream):
    folder = write_stream({"memit": [[False, False, True, False, True, True, True]]})
    assert ages(folder) == [(5, 0, 2), (3, 50, 2), (1, 100, 2), (0, 100, 1)]


def test_a_long_stream_is_cut_into_ten_ages(write_stream):
    folder = write_stream({"memit": [[place >= 20 for place in range(40)]]}, batch_size=1)
    found = ages(folder)
    assert len(found) == 10
    assert found[0] == (37.5, 0, 4)  # written 39 to 36 facts ago
    assert found[-1] == (1.5, 100, 4)


def test_what_was_superseded_has_no_age(write_stream):
    folder = write_stream({"memit": [[False, True, True, True]]}, superseded=0)
    assert ages(folder) == [(2, 100, 1), (0, 100, 2)]


def test_what_was_written_at_once_has_none(write_run, describe):
    trial = describe()
    folder = write_run({"a": trial}, {"a": {"efficacy_success": [100, 0]}})
    assert summarize([folder]).retention == ()


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_streams_have_figures_over_their_orders(write_stream, tmp_path):
    orders = [[False, True, True, True], [True, True, False, True]]
    folder = write_stream({"unedited": [[False] * 4, [False] * 4], "memit": orders})
    paths = draw_figures(summarize([folder]), tmp_path / "figures")
    assert [path.name for path in paths if path.suffix == ".csv"] == [
        "streams.csv", "retention.csv"
    ]  # fmt: skip
    written = read(tmp_path / "figures" / "streams.csv")
    of_memit = [line for line in written if line["series"] == "memit"]
    assert [(float(line["x"]), float(line["value"])) for line in of_memit] == [(2, 75), (4, 75)]
    assert {line["n"] for line in of_memit} == {"2"}  # orders
    kept = [
        line for line in read(tmp_path / "figures" / "retention.csv") if line["series"] == "memit"
    ]
    assert [(float(line["x"]), float(line["value"])) for line in kept] == [(0, 75), (2, 75)]


def test_one_order_has_bands_over_cases(write_stream, tmp_path):
    folder = write_stream({"memit": [[False, True, True, True]]})
    draw_figures(summarize([folder]), tmp_path / "figures")
    (_, last) = read(tmp_path / "figures" / "streams.csv")
    assert (last["n"], float(last["value"])) == ("4", 75)
    assert float(last["ci_low"]) < 75 < float(last["ci_high"])
