"""Trials, from editing to stored rows."""

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, NoReturn

import pytest
import torch
from tests.editbench.runner.toys import (
    Broken,
    Length,
    RandomConfig,
    RandomUpdate,
    Toy,
    make_grid,
    random_update,
)

from editbench.editors.base import EditorConfig, Resources
from editbench.edits.card import hash_requests
from editbench.edits.edit import Edit
from editbench.metrics.probes import Success
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.questions import Answers
from editbench.requests import EditCase, EditRequest
from editbench.results.frame import load_rows
from editbench.results.row import Row
from editbench.results.store import read_manifest, read_trial, transcripts_path
from editbench.results.transcript import read_transcripts
from editbench.runner import Trial, prepare_run, run_grid
from editbench.runner.trial_run import failed_trial
from editbench.testing import tiny_model, toy_cases


def test_rows_are_what_the_metrics_say_about_the_edited_model(model, tmp_path):
    editor = random_update(1.0)
    trials = make_grid(model, editor, n_edits=[4])
    summary = run_grid(trials, tmp_path)
    assert (summary.n_run, summary.n_skipped, summary.failures) == (2, 0, ())
    frame = load_rows([tmp_path])
    assert len(frame) == 2 * 4 * 6
    assert set(frame["status"]) == {"ok"}
    cases = toy_cases(12)[:4]
    edit = editor.edit(model, [case.request for case in cases], Resources(seed=0))
    metric = Success()
    questions = [question for case in cases for question in metric.questions(case)]
    with edit.applied(model):
        answers = answer_questions(model, questions, seed=0, token_budget=500)
    for case in cases:
        of_case = frame[(frame["editor"] == "random") & (frame["case_id"] == case.request.case_id)]
        values = dict(zip(of_case["metric"], of_case["value"], strict=True))
        assert metric.values(case, answers).items() <= values.items()


def test_every_batch_is_edited_into_the_unedited_model_and_measured(model, tmp_path):
    editor = random_update(1.0)
    run_grid(make_grid(model, editor, n_edits=[2], n_batches=lambda n: 6 // n), tmp_path / "all")
    frame = load_rows([tmp_path / "all"])
    manifest = read_manifest(tmp_path / "all")
    for trial, description in manifest.trials.items():
        rows = frame[frame["trial"] == trial]
        assert list(dict.fromkeys(rows["case_id"])) == ["0", "1", "2", "3", "4", "5"]
        assert description.n_batches == len(read_trial(tmp_path / "all", trial).edits) == 3
    last = Toy(toy_cases(12)[4:6])
    run_grid(make_grid(model, editor, n_edits=[2], dataset=last), tmp_path / "last")
    alone = load_rows([tmp_path / "last"])
    columns = ["editor", "case_id", "metric", "value"]
    batched = frame[frame["case_id"].isin(["4", "5"])]
    assert batched[columns].to_numpy().tolist() == alone[columns].to_numpy().tolist()


def test_a_trial_keeps_what_was_asked_and_what_the_model_said(model, tmp_path):
    trials = make_grid(
        model, random_update(1.0), metrics=[Success(), Length()], n_batches=lambda n: 2
    )
    run_grid(trials, tmp_path)
    frame = load_rows([tmp_path])
    for trial in trials:
        told = list(read_transcripts(transcripts_path(tmp_path, trial.hash)))
        assert [case.case_id for case in told] == [str(index) for index in range(8)]
        for case, transcript in zip(toy_cases(8), told, strict=True):
            assert transcript.subject == case.request.subject
            ((prompt, text),) = transcript.texts
            assert prompt == case.generation_prompts[0]
            assert text.startswith(prompt)
            for probe, heard in zip(case.probes, transcript.probes, strict=True):
                succeeded = heard.log_prob_expected > heard.log_prob_alternative
                metric = f"{probe.kind}_success"
                row = frame[
                    (frame["trial"] == trial.hash)
                    & (frame["case_id"] == transcript.case_id)
                    & (frame["metric"] == metric)
                ]
                assert row["value"].item() == 100 * succeeded


def test_a_trial_keeps_a_record_of_how_it_went(model, tmp_path):
    trials = make_grid(model, random_update())
    before = model.compute_fingerprint()
    run_grid(trials, tmp_path, provenance={"command": "editbench run"})
    assert model.compute_fingerprint() == before
    record = read_trial(tmp_path, trials[1].hash)
    assert set(record.seconds) == {"edit", "answer"}
    assert record.peak_memory_bytes["process"] > 1e6
    assert record.edits[0]["model_fingerprint"] == model.fingerprint
    requests = [case.request for case in toy_cases(12)[:4]]
    assert record.edits[0]["requests_hash"] == hash_requests(requests)
    manifest = read_manifest(tmp_path)
    assert manifest.provenance["command"] == "editbench run"
    assert manifest.provenance["models"][0]["fingerprint"] == model.fingerprint
    assert {"torch", "editbench"} <= manifest.provenance["versions"].keys()
    assert list(manifest.trials) == [trial.hash for trial in trials]


def test_progress_goes_from_nothing_to_everything(model, tmp_path):
    seen: dict[str, list[tuple[int, int]]] = {}

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        seen.setdefault(stage, []).append((done, total))

    run_grid(make_grid(model, random_update()), tmp_path, on_progress=report)
    assert list(dict.fromkeys(seen["cases"])) == [(0, 8), (4, 8), (8, 8)]
    assert seen["answers"][-1][0] == seen["answers"][-1][1] > 0


def test_an_editor_that_changes_nothing_has_no_effect(model, tmp_path):
    trials = make_grid(model, random_update(0.0))
    run_grid(trials, tmp_path)
    frame = load_rows([tmp_path])
    unedited = frame[frame["editor"] == "unedited"]
    idle = frame[frame["editor"] == "random"]
    assert set(unedited["status"]) == {"ok"}
    assert set(idle["status"]) == {"no_effect"}
    assert list(idle["value"]) == list(unedited["value"])


def test_a_failing_trial_is_a_row_and_the_others_go_on(model, tmp_path):
    trials = make_grid(model, Broken(RandomConfig()), random_update())
    summary = run_grid(trials, tmp_path)
    assert [(trial.editor.name, message) for trial, message in summary.failures] == [
        ("broken", "RuntimeError: the wheels came off")
    ]
    frame = load_rows([tmp_path])
    failed = frame[frame["status"] == "error"]
    assert len(failed) == 1
    assert failed.iloc[0]["message"] == "RuntimeError: the wheels came off"
    assert failed[["case_id", "metric", "value"]].isna().all(axis=None)
    assert len(frame[frame["editor"] == "random"]) == 4 * 6
    record = read_trial(tmp_path, trials[1].hash)
    assert record.status == "error"
    assert 'raise RuntimeError("the wheels' in record.traceback


class Greedy(RandomUpdate):
    """Wants more memory than there is, in one piece; what it has by then is in a ring."""

    name: ClassVar[str] = "greedy"
    left: ClassVar[list[weakref.ref[torch.Tensor]]] = []

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        ring: list[object] = [torch.zeros(1_000)]
        ring.append(ring)
        self.left.append(weakref.ref(ring[0]))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_memory_that_runs_out_is_explained_and_there_for_the_next_trial(model, tmp_path):
    class Next(RandomUpdate):
        def edit(self, *args: object) -> Edit:
            n_left.append(sum(tensor() is not None for tensor in Greedy.left))
            return super().edit(*args)

    n_left: list[int] = []
    trials = make_grid(model, Greedy(RandomConfig()), Next(RandomConfig()))
    gc.disable()  # as if Python looked for rings much later
    try:
        summary = run_grid(trials, tmp_path)
    finally:
        gc.enable()
    message = (
        f"trial of 'greedy' on '{model.name}': memory runs out and the work cannot be divided, "
        "got: CUDA out of memory. Tried to allocate 2.00 GiB. Load the model with --dtype "
        "bfloat16, spread it with --device-map auto, or use --device cpu."
    )
    assert [message for _, message in summary.failures] == [message]
    assert "torch.OutOfMemoryError" in read_trial(tmp_path, trials[1].hash).traceback
    assert len(Greedy.left) == 1
    assert n_left == [0]


class Spoiler(RandomUpdate):
    """Edits the model in place, against the contract."""

    name: ClassVar[str] = "spoiler"

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        edit = super().edit(model, requests, resources)
        with torch.no_grad():
            model.model.get_parameter(next(iter(edit.updates))).add_(1)
        return edit


def test_an_editor_that_spoils_the_model_fails_and_so_do_the_trials_after_it(tmp_path):
    spoiled = tiny_model(n_layers=1)
    trials = make_grid(spoiled, Spoiler(RandomConfig()), random_update())
    summary = run_grid(trials, tmp_path)
    assert [trial.editor.name for trial, _ in summary.failures] == ["spoiler", "random"]
    messages = [message for _, message in summary.failures]
    assert "left the model changed" in messages[0]
    assert "since editor 'spoiler' changed them" in messages[1]


def test_the_record_of_a_trial_that_was_not_begun_has_what_is_known_of_its_facts(model):
    prepared = prepare_run(make_grid(model, random_update())).prepared[-1]
    (batch,) = prepared.batches
    cases = tuple(
        replace(case, request=replace(case.request, subject="Lena Ort")) for case in batch.cases
    )
    trial = replace(prepared, batches=(replace(batch, cases=cases),), n_known=(2, 9), n_conflicts=1)
    record = failed_trial(trial, "it was lost").record
    assert record.status == "error"
    assert (record.n_conflicts, record.n_known) == (1, (2, 9))
    assert record.n_shared_subjects == len(cases) > 1


class Crasher(RandomUpdate):
    """Fails, or not, and takes the device along: nothing can be read from it any more."""

    name: ClassVar[str] = "crasher"

    def __init__(self, config: EditorConfig, *, fails: bool) -> None:
        super().__init__(config)
        self._fails = fails

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        def assert_on_device(*_: object, **__: object) -> NoReturn:
            raise RuntimeError("CUDA error: device-side assert triggered")

        model.model.named_modules = assert_on_device  # type: ignore[method-assign]
        if self._fails:
            raise IndexError("the real reason")
        return super().edit(model, requests, resources)


@pytest.mark.parametrize("fails", [True, False])
def test_a_model_that_cannot_be_read_after_a_trial_fails_what_needs_it(model, tmp_path, fails):
    lost = tiny_model(n_layers=1)
    editors = (Crasher(RandomConfig(), fails=fails), random_update())
    trials = [*make_grid(lost, *editors), *make_grid(model, random_update())]
    summary = run_grid(trials, tmp_path)
    assert [trial.editor.name for trial, _ in summary.failures] == ["crasher", "random"]
    first, later = (message for _, message in summary.failures)
    assert first.startswith("IndexError: the real reason") == fails
    reason = "cannot be read after a trial of editor 'crasher', got RuntimeError: CUDA error"
    assert reason in first
    assert reason in later
    assert "resume the run in another process" in later
    record = read_trial(tmp_path, trials[1].hash)
    assert ("the real reason" if fails else "assert_on_device") in record.traceback
    frame = load_rows([tmp_path])
    assert list(frame[frame["status"] == "error"]["editor"]) == ["crasher", "random"]
    assert len(frame[(frame["editor"] == "random") & (frame["status"] == "ok")]) == 4 * 6


class FailingSpoiler(Spoiler):
    name: ClassVar[str] = "failing-spoiler"

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        super().edit(model, requests, resources)
        raise IndexError("the real reason")


def test_what_made_an_editor_leave_the_model_changed_is_said_first(tmp_path):
    summary = run_grid(make_grid(tiny_model(n_layers=1), FailingSpoiler(RandomConfig())), tmp_path)
    ((_, message),) = summary.failures
    assert message.startswith("IndexError: the real reason. After that: editor 'failing-spoiler'")


class Unruly(Success):
    name: ClassVar[str] = "unruly"

    def __init__(self, values: dict[str, float]) -> None:
        self._values = values

    def values(self, case: EditCase, answers: Answers) -> dict[str, float]:
        return self._values


@pytest.mark.parametrize("values", [{"efficacy_success": float("nan")}, {"unheard_of": 1.0}])
def test_a_metric_must_keep_its_word(model, tmp_path, values):
    summary = run_grid(make_grid(model, metrics=[Unruly(values)]), tmp_path)
    assert "metric 'unruly', case '0': got" in summary.failures[0][1]


class Warner(RandomUpdate):
    name: ClassVar[str] = "warner"

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        import warnings

        warnings.warn("second moments without provenance", stacklevel=1)
        return super().edit(model, requests, resources)


def test_warnings_are_kept(model, tmp_path):
    trials = make_grid(model, Warner(RandomConfig()), seeds=[0, 1])
    summary = run_grid(trials, tmp_path)
    expected = ("second moments without provenance",)
    assert summary.warnings == expected
    assert read_trial(tmp_path, trials[1].hash).warnings == expected


def test_listeners_hear_of_each_trial_once_it_is_stored_and_cannot_break_the_run(model, tmp_path):
    heard: list[tuple[str, int]] = []

    def listen(trial: Trial, rows: Sequence[Row]) -> None:
        assert read_trial(tmp_path, trial.hash).trial == trial.hash
        heard.append((trial.editor.name, len(rows)))
        raise RuntimeError("not listening")

    trials = make_grid(model, Broken(RandomConfig()))
    summary = run_grid(trials, tmp_path, on_trial_finished=listen)
    assert heard == [("unedited", 24), ("broken", 1)]
    assert (
        "unedited on tiny, toy, 4 edits, seed 0: RuntimeError: not listening"
        in (summary.warnings[0])
    )


def test_answers_of_the_unedited_model_are_reused_where_the_seed_does_not_matter(model, tmp_path):
    asked: list[int] = []

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "answers" and done == total:
            asked.append(total)

    metrics = [Success(), Length()]
    run_grid(make_grid(model, seeds=[0, 1], metrics=metrics), tmp_path, on_progress=report)
    n_scores, n_texts = 4 * 6, 4
    assert sum(asked) == n_scores + 2 * n_texts
    frame = load_rows([tmp_path])
    assert len(frame) == 2 * 4 * 4
