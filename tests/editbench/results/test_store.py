import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from editbench.errors import RunError
from editbench.results.manifest import RunManifest
from editbench.results.store import (
    RunStore,
    finished_trials,
    read_manifest,
    read_trial,
    rows_path,
)


@pytest.fixture
def trials(describe):
    return [describe(seed=seed) for seed in range(3)]


@pytest.fixture
def manifest(plan, trials):
    return plan(*trials)


def test_what_is_written_is_read_again(tmp_path, manifest, trials, record, rows):
    folder = tmp_path / "runs" / "first"
    with RunStore.open(folder, manifest, resume=False) as store:
        assert not store.is_finished(trials[0].hash)
        stored = record(trials[0], seconds={"edit": 1.5}, warnings=("careful",))
        store.write(stored, rows(trials[0], {"efficacy_success": [100, 0]}))
        assert store.is_finished(trials[0].hash)
        assert not store.is_finished(trials[1].hash)
    assert read_manifest(folder) == manifest
    assert finished_trials(folder, manifest) == [trials[0].hash]
    read = read_trial(folder, trials[0].hash)
    assert read.files.keys() == {"rows.jsonl"}
    assert read.model_copy(update={"files": {}}) == stored
    assert len(rows_path(folder, trials[0].hash).read_text().splitlines()) == 2


def test_a_failed_trial_is_tried_again_and_replaced(
    tmp_path, manifest, trials, record, rows, failed_row
):
    with RunStore.open(tmp_path, manifest, resume=False) as store:
        store.write(record(trials[0], "error", message="no"), [failed_row(trials[0], "no")])
        assert not store.is_finished(trials[0].hash)
        assert finished_trials(tmp_path, manifest) == [trials[0].hash]
    with RunStore.open(tmp_path, manifest, resume=True) as store:
        store.write(record(trials[0]), rows(trials[0], {"efficacy_success": [100]}))
        assert store.is_finished(trials[0].hash)
    assert read_trial(tmp_path, trials[0].hash).status == "ok"
    assert sorted(path.name for path in (tmp_path / "trials").iterdir()) == [trials[0].hash]


def test_a_folder_that_holds_a_run_is_refused_unless_resumed(tmp_path, manifest):
    with RunStore.open(tmp_path, manifest, resume=False):
        pass
    before = (tmp_path / "run.json").read_bytes()
    with (
        pytest.raises(RunError, match=r"holds a run already.*--resume"),
        RunStore.open(tmp_path, manifest, resume=False),
    ):
        pass
    with RunStore.open(tmp_path, manifest, resume=True):
        pass
    assert (tmp_path / "run.json").read_bytes() == before


def test_another_configuration_is_refused_with_what_differs(tmp_path, plan, describe):
    with RunStore.open(tmp_path, plan(describe()), resume=False):
        pass
    other = plan(describe(config={"n_steps": 25}))
    with (
        pytest.raises(RunError, match=r"memit\.n_steps: got 25; expected 20"),
        RunStore.open(tmp_path, other, resume=True),
    ):
        pass


def test_a_resumed_run_keeps_what_it_first_called_the_model(tmp_path, plan, describe):
    with RunStore.open(tmp_path, plan(describe(model="./gpt2")), resume=False):
        pass
    with RunStore.open(tmp_path, plan(describe(model="/abs/gpt2")), resume=True) as store:
        assert store.manifest.trials[describe().hash].model == "./gpt2"


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path, manifest):
    (tmp_path / "thesis.tex").write_text("years of work")
    for resume in (False, True):
        with (
            pytest.raises(RunError, match=r"no run.*thesis\.tex"),
            RunStore.open(tmp_path, manifest, resume=resume),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with (
        pytest.raises(RunError, match="not a folder"),
        RunStore.open(tmp_path / "thesis.tex", manifest, resume=False),
    ):
        pass


def test_leftovers_of_a_killed_run_are_removed(tmp_path, manifest, trials, record, rows):
    with RunStore.open(tmp_path, manifest, resume=False) as store:
        store.write(record(trials[0]), rows(trials[0], {"efficacy_success": [1]}))
    half = tmp_path / "trials" / f".unfinished-{trials[1].hash}"
    half.mkdir()
    (half / "rows.jsonl").write_text('{"tri')
    with RunStore.open(tmp_path, manifest, resume=True) as store:
        assert not half.exists()
        assert store.is_finished(trials[0].hash)
        assert not store.is_finished(trials[1].hash)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_killed_before_it_began_is_begun_anew(tmp_path, manifest, resume):
    (tmp_path / ".lock").touch()
    (tmp_path / ".unfinished-run.json").write_text('{"form')
    with RunStore.open(tmp_path, manifest, resume=resume):
        pass
    assert read_manifest(tmp_path) == manifest
    assert not (tmp_path / ".unfinished-run.json").exists()


def test_two_processes_cannot_write_to_one_folder(tmp_path, manifest):
    """The lock goes with the process that holds it, however that ends."""
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
    folder = tmp_path / "run"
    script = f"""
import sys
from pathlib import Path
from editbench.results.manifest import RunManifest
from editbench.results.store import RunStore
manifest = RunManifest.model_validate_json(Path({str(tmp_path / "manifest.json")!r}).read_bytes())
with RunStore.open(Path({str(folder)!r}), manifest, resume=False):
    print("open", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "open\n"
        with (
            pytest.raises(RunError, match="another process is writing"),
            RunStore.open(folder, manifest, resume=True),
        ):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        with RunStore.open(folder, manifest, resume=True) as store:
            assert store.manifest == manifest


def test_an_exception_in_the_block_keeps_what_is_finished(tmp_path, manifest, trials, record, rows):
    def write_and_stop() -> None:
        with RunStore.open(tmp_path, manifest, resume=False) as store:
            store.write(record(trials[0]), rows(trials[0], {"efficacy_success": [1]}))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()
    with RunStore.open(tmp_path, manifest, resume=True) as store:
        assert store.is_finished(trials[0].hash)


FULL_DISK = """
import resource, sys
from pathlib import Path
from editbench.errors import RunError
from editbench.results.manifest import RunManifest
from editbench.results.row import Row
from editbench.results.store import RunStore, TrialRecord
source, folder, limit_first = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "first"
manifest = RunManifest.model_validate_json(source.read_bytes())
first, second, _ = manifest.trials
limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
def write(store, trial, n_rows):
    row = Row(trial, "memit", "m", "d", 1, 0, "1", "efficacy_success", 100.0, "ok")
    store.write(TrialRecord(trial=trial, status="ok", finished="now"), [row] * n_rows)
try:
    if limit_first:
        limit()
    with RunStore.open(folder, manifest, resume=False) as store:
        write(store, first, 10)
        limit()
        write(store, second, 100)
except RunError as error:
    sys.exit(0 if "cannot write" in str(error) and "File too large" in str(error) else str(error))
sys.exit("was written")
"""


@pytest.mark.parametrize("when", ["first", "later"])
def test_a_full_disk_is_one_error_and_nothing_is_half_written(tmp_path, manifest, when):
    """A limit on the size of files, in a process of its own, stands in for the full disk."""
    source, folder = tmp_path / "manifest.json", tmp_path / "run"
    source.write_text(manifest.model_dump_json())
    command = [sys.executable, "-c", FULL_DISK, str(source), str(folder), when]
    subprocess.run(command, check=True, timeout=120)
    if when == "first":
        assert not folder.exists()
        return
    first, *_ = manifest.trials
    assert finished_trials(folder, manifest) == [first]
    assert [path.name for path in (folder / "trials").iterdir()] == [first]
    with RunStore.open(folder, manifest, resume=True) as store:
        assert store.is_finished(first)


def test_damaged_files_are_named(tmp_path, manifest, trials, record, rows):
    with pytest.raises(RunError, match=r"holds no run.*run\.json"):
        read_manifest(tmp_path)
    with RunStore.open(tmp_path, manifest, resume=False) as store:
        store.write(record(trials[0]), rows(trials[0], {"efficacy_success": [1]}))
    (tmp_path / "trials" / trials[0].hash / "trial.json").write_text("{")
    with (
        RunStore.open(tmp_path, manifest, resume=True) as store,
        pytest.raises(RunError, match=r"trial\.json.*Delete the folder"),
    ):
        store.is_finished(trials[0].hash)
    (tmp_path / "run.json").write_text('{"format": 2}')
    with pytest.raises(RunError, match=r"cannot read.*run\.json"):
        read_manifest(tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path, manifest):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match="create the run folder: cannot write"),
        RunStore.open(tmp_path / "file" / "run", manifest, resume=False),
    ):
        pass


def test_run_json_is_plain_json(tmp_path: Path, manifest: RunManifest):
    with RunStore.open(tmp_path, manifest, resume=False):
        pass
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["format"] == 1
    assert content["provenance"] == {"python": "3"}
    assert list(content["trials"]) == list(manifest.trials)
