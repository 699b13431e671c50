"""Trials on a real Ray cluster of two workers, on the loopback address."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from tests.editbench.runner import toys
from tests.editbench.runner.toys import Length, RandomConfig, RandomUpdate, Toy, make_grid

from editbench.editors.base import Editor, Resources, Share
from editbench.editors.memit import Memit, MemitConfig
from editbench.edits.edit import Edit
from editbench.errors import RunError
from editbench.metrics.probes import Success
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest
from editbench.results.row import Row
from editbench.results.store import read_manifest, read_trial
from editbench.runner import Inputs, Trial, grid, run_grid
from editbench.testing import toy_corpus

ray = pytest.importorskip("ray", reason="needs the extra editbench[ray]")
pytestmark = pytest.mark.cluster

from editbench.runner.on_ray import RayExecutor, TaskNeeds, executor, needs, tasks  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def two_workers() -> Iterator[None]:
    """A cluster for this file; what is defined in it is sent along, since no worker has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # else other tests beside it starve the workers
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            _node_ip_address="127.0.0.2",
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            logging_level="error",
        )
    for module in (sys.modules[__name__], toys):
        ray.cloudpickle.register_pickle_by_value(module)
    yield
    for module in (sys.modules[__name__], toys):
        ray.cloudpickle.unregister_pickle_by_value(module)
    ray.shutdown()


class Nudge(RandomUpdate):
    """Says that it works."""

    name: ClassVar[str] = "nudge"

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        resources.report_progress("nudging", 1, 1)
        return super().edit(model, requests, resources)


class Broken(Nudge):
    name: ClassVar[str] = "broken"

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        raise RuntimeError("the wheels came off")


class Stuck(Nudge):
    """With seed 1, says where it runs, and waits to be killed; the next time it goes on."""

    name: ClassVar[str] = "nudge"

    def __init__(self, pids: Path) -> None:
        super().__init__(RandomConfig(scale=1.0))
        self.pids = pids

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        if resources.seed == 1 and not list(self.pids.iterdir()):
            (self.pids / str(os.getpid())).touch()
            time.sleep(60)
            raise AssertionError("nobody killed it")
        return super().edit(model, requests, resources)


class Watched(Memit):
    """Says that a share was done; the worker of the second then dies."""

    def prepare(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        resources: Resources,
        share: Share,
    ) -> None:
        super().prepare(model, requests, resources, share)
        assert resources.cache is not None
        (resources.cache / f"did-{share.index + 1}-of-{share.n}").touch()
        if share.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def nudge_grid(model: EditableModel, *editors: Editor) -> list[Trial]:
    more = {"metrics": (Success(), Length()), "n_batches": lambda n: 2}
    return make_grid(model, *editors, n_edits=[2], seeds=[0, 1], **more)


def contents_of(folder: Path) -> dict[str, bytes]:
    """Rows and transcripts of every trial."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in ("rows.jsonl", "cases.jsonl.gz")
        for path in sorted(folder.glob(f"trials/*/{name}"))
    }


@contextmanager
def killing_once(pids: Path) -> Iterator[None]:
    """Kill the process that says in a folder that it has begun a trial."""
    pids.mkdir()

    def watch() -> None:
        while not (found := list(pids.iterdir())):
            time.sleep(0.05)
        os.kill(int(found[0].name), signal.SIGKILL)

    executioner = threading.Thread(target=watch, daemon=True)
    executioner.start()
    yield
    executioner.join(timeout=10)
    assert len(list(pids.iterdir())) == 1


def test_a_killed_worker_s_trial_is_run_again_and_the_rows_are_those_of_a_local_run(
    model, tmp_path
):
    idle, nudge = Nudge(RandomConfig(scale=0.0)), Nudge(RandomConfig(scale=1.0))
    here, there, pids = tmp_path / "here", tmp_path / "there", tmp_path / "pids"
    stages: dict[str, list[tuple[int, int, str]]] = {}

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        stages.setdefault(stage, []).append((done, total, note))

    heard: list[str] = []

    def listen(trial: Trial, rows: Sequence[Row]) -> None:
        assert read_trial(there, trial.hash).trial == trial.hash  # stored by this process already
        heard.append(trial.hash)

    trials = nudge_grid(model, Stuck(pids), idle, Broken(RandomConfig(scale=1.0)))
    with killing_once(pids):
        summary = run_grid(
            trials,
            there,
            executor=RayExecutor(),
            on_progress=report,
            on_trial_finished=listen,
        )
    assert {message for _, message in summary.failures} == {"RuntimeError: the wheels came off"}
    assert (summary.n_run, len(summary.failures)) == (8, 2)
    assert sorted(heard) == sorted(trial.hash for trial in trials)
    run_grid(nudge_grid(model, nudge, idle, Broken(RandomConfig(scale=1.0))), here)
    assert contents_of(there) == contents_of(here)
    assert read_manifest(there).provenance["executor"]["name"] == "ray"
    # A line for each worker, and one for the whole.
    assert stages["cases"][0][:2] == (0, 32)
    assert stages["cases"][-1][:2] == (32, 32)
    assert any("trial 8 of 8: " in note for _, _, note in stages["cases"])
    assert "worker 1" in stages
    assert all(stage == "cases" or stage.startswith("worker ") for stage in stages)
    assert any(note == "batches" for reports in stages.values() for _, _, note in reports)


def test_a_trial_whose_workers_all_die_is_a_row_and_a_resumed_run_tries_it_again(
    model, tmp_path, monkeypatch
):
    folder, pids = tmp_path / "run", tmp_path / "pids"
    planned, plan = [], needs.estimate_peak
    monkeypatch.setattr(
        needs, "estimate_peak", lambda work, *rest: planned.append(work) or plan(work, *rest)
    )
    with killing_once(pids):
        summary = run_grid(
            nudge_grid(model, Stuck(pids)), folder, executor=RayExecutor(n_retries=0)
        )
    ((failed, message),) = summary.failures
    assert (failed.editor.name, failed.seed, summary.n_run) == ("nudge", 1, 4)
    assert "the process that ran the trial died" in message
    assert [work.editor.name for work in planned] == ["unedited", "nudge"]  # once for all seeds
    trials = nudge_grid(model, Nudge(RandomConfig(scale=1.0)))
    resumed = run_grid(trials, folder, executor=RayExecutor(), resume=True)
    assert (resumed.n_run, resumed.n_skipped, resumed.failures) == (1, 3, ())
    run_grid(trials, tmp_path / "whole")
    assert contents_of(folder) == contents_of(tmp_path / "whole")


def memit_trials(model: EditableModel, editor: type[Memit] = Memit) -> list[Trial]:
    config = MemitConfig(
        critical_layers=(0, 1), preservation_weight=10.0, n_steps=4, second_moment_tokens=2000
    )
    return grid(
        models=[model],
        datasets=[Toy()],
        editors=lambda _: [editor(config)],
        metrics=lambda _: [Success(), Length()],
        n_edits=[12],
        seeds=[0],
        inputs=lambda model, dataset: Inputs(corpus=toy_corpus()),
    )


def test_one_large_trial_is_divided_and_its_rows_are_those_of_a_local_run(
    model, tmp_path, monkeypatch
):
    monkeypatch.setattr(executor, "_MIN_SHARE", 4)
    notes: list[str] = []

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        notes.append(note)

    here, there = tmp_path / "here", tmp_path / "there"
    run_grid(
        memit_trials(model, Watched),
        there,
        cache=tmp_path / "cache-there",
        executor=RayExecutor(n_retries=0),
        on_progress=report,
    )
    assert any("target hidden states" in note and "12 from the cache" in note for note in notes)
    done = (tmp_path / "cache-there").glob("did-*")
    assert sorted(path.name for path in done) == ["did-1-of-2", "did-2-of-2"]
    run_grid(memit_trials(model), here, cache=tmp_path / "cache")
    assert contents_of(there) == contents_of(here)


def test_a_stream_is_one_task_and_its_rows_are_those_of_a_local_run(model, tmp_path):
    trials = make_grid(
        model, Nudge(RandomConfig(scale=0.3)), n_edits=[6], batch_size=2, checkpoints=lambda n: [4]
    )
    run_grid(trials, tmp_path / "ray", executor=RayExecutor(needs=TaskNeeds(cpus=1)))
    run_grid(trials, tmp_path / "local")
    assert contents_of(tmp_path / "ray") == contents_of(tmp_path / "local")
    assert len(read_trial(tmp_path / "ray", trials[1].hash).checkpoints) == 2
    assert not (tmp_path / "ray" / "streams").exists()


def test_an_editor_that_cannot_be_sent_is_an_error_that_says_so(model, tmp_path):
    editor = Nudge(RandomConfig(scale=1.0))
    editor.lock = threading.Lock()
    with pytest.raises(
        RunError, match=r"nudge on tiny.* got a Nudge that cannot be pickled .*lock"
    ):
        run_grid(nudge_grid(model, editor), tmp_path, executor=RayExecutor())


def test_a_worker_with_other_packages_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "package_versions", lambda: {"torch": "0.1"})
    summary = run_grid(nudge_grid(model)[:1], tmp_path, executor=RayExecutor())
    ((_, message),) = summary.failures
    assert "a worker has other packages than the run" in message
    assert message.endswith("expected torch 0.1. Install the same versions on all machines.")


def test_who_asks_for_more_than_there_is_hears_of_it(model, tmp_path):
    # Warnings are errors here; elsewhere the run waits for a machine that is large enough.
    with pytest.raises(
        UserWarning, match=r"needs, got 64 cores, 0 GPUs and 3.0 GiB; the run waits"
    ):
        run_grid(
            nudge_grid(model), tmp_path, executor=RayExecutor(needs=TaskNeeds(cpus=64, memory=3))
        )


class Confidential(Nudge):
    """Says what memory its model goes by, which no result does."""

    name: ClassVar[str] = "confidential"

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        raise RuntimeError(f"may fill {model.memory.limit}, has room for {model.memory.room}")


def test_a_worker_s_model_goes_by_the_share_of_memory_that_its_task_has(model, tmp_path):
    n_bytes = model.memory.weight_bytes[model.device]
    trial = nudge_grid(model, Confidential(RandomConfig(scale=1.0)))[1]
    summary = run_grid([trial], tmp_path, executor=RayExecutor(needs=TaskNeeds(memory=1.25)))
    limit = 5 * 2**28 - (5 * 2**28 - n_bytes) // 2  # the process has half of what there is
    ((_, message),) = summary.failures
    assert message == f"RuntimeError: may fill {limit}, has room for {limit - n_bytes}"
    assert model.memory.limit is None
