import gc
import json
import math
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, NoReturn

import pytest
import torch

from editbench.datasets.base import Dataset
from editbench.datasets.corpus import Corpus
from editbench.editors.base import Editor, EditorConfig, Resources
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.unedited import Unedited
from editbench.edits.card import hash_requests
from editbench.edits.edit import Edit
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import ConfigError, RequestError, RunError, SecondMomentError
from editbench.metrics.base import AnyMetric, Metric
from editbench.metrics.generation import ReferenceScore
from editbench.metrics.perplexity import Perplexity
from editbench.metrics.probes import Accuracy, Success, TokenAccuracy
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.questions import Answers, Generate, GenerateAnswer, Question, Read
from editbench.requests import EditCase, EditRequest, Probe
from editbench.results.frame import load_rows
from editbench.results.report import summarize
from editbench.results.row import Row
from editbench.results.store import read_manifest, read_trial, transcripts_path
from editbench.results.transcript import read_transcripts
from editbench.runner import Inputs, Trial, grid, has_questions, run_grid, select_batches
from editbench.testing import tiny_model, toy_cases
from memit_core import UpdateFactors


class RandomConfig(EditorConfig):
    scale: float = 0.05


class RandomUpdate(Editor):
    """Adds a random update of rank one to the first layer."""

    name: ClassVar[str] = "random"
    config_type: ClassVar[type[EditorConfig]] = RandomConfig
    config: RandomConfig

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        generator = torch.Generator().manual_seed(resources.seed)
        projection = model.architecture.mlp_projections[0]
        left = torch.randn(model.architecture.d_model, 1, generator=generator)
        right = torch.randn(model.d_key(0), 1, generator=generator)
        name = model.architecture.weight_name(projection)
        return WeightEdit.build(
            model,
            editor=self.name,
            config=self.config,
            requests=requests,
            updates={name: UpdateFactors(self.config.scale * left, right)},
        )


class Broken(RandomUpdate):
    name: ClassVar[str] = "broken"

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        raise RuntimeError("the wheels\ncame off")


class Toy(Dataset):
    """Facts about jobs."""

    name: ClassVar[str] = "toy"
    fingerprint = "toy-1"

    def __init__(self, cases: Sequence[EditCase] = ()) -> None:
        self._cases = list(cases) or toy_cases(12)

    def cases(self) -> Sequence[EditCase]:
        return self._cases


class Length(Metric):
    """How long a generated text is; asks a question that depends on the seed."""

    name: ClassVar[str] = "length"
    produces: ClassVar[tuple[str, ...]] = ("length",)
    bounds: ClassVar[tuple[float, float]] = (0.0, float("inf"))

    def questions(self, case: EditCase) -> tuple[Question, ...]:
        return tuple(Generate(prompt, 12) for prompt in case.generation_prompts)

    def values(self, case: EditCase, answers: Answers) -> dict[str, float]:
        texts = [answers[question] for question in self.questions(case)]
        return {"length": sum(len(text.text) for text in texts if isinstance(text, GenerateAnswer))}


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model(n_layers=2)


def make_grid(
    model: EditableModel,
    *editors: Editor,
    n_edits: Sequence[int] = (4,),
    seeds: Sequence[int] = (0,),
    metrics: Sequence[AnyMetric] = (Success(), Accuracy()),
    dataset: Dataset | None = None,
    **options: object,
) -> list[Trial]:
    return grid(
        models=[model],
        datasets=[dataset or Toy()],
        editors=lambda _: list(editors),
        metrics=lambda _: list(metrics),
        n_edits=n_edits,
        seeds=seeds,
        **options,
    )


def random_update(scale: float = 0.05) -> RandomUpdate:
    return RandomUpdate(RandomConfig(scale=scale))


def rows_of(folder: Path) -> dict[str, list[str]]:
    return {
        path.parent.name: path.read_text(encoding="utf-8").splitlines()
        for path in sorted(folder.glob("trials/*/rows.jsonl"))
    }


# Grids


def test_a_grid_is_all_combinations_and_the_unedited_model_once_for_each(model):
    trials = make_grid(model, random_update(1), random_update(2), n_edits=[1, 2], seeds=[0, 1])
    assert [(t.editor.name, t.n_edits, t.seed) for t in trials] == [
        (editor, n, seed)
        for n in (1, 2)
        for seed in (0, 1)
        for editor in ("unedited", "random", "random")
    ]
    assert len({trial.hash for trial in trials}) == len(trials)


def test_what_is_asked_for_twice_is_run_once(model):
    explicit = Unedited(EditorConfig())
    trials = make_grid(model, explicit, random_update(), random_update(), seeds=[0, 0])
    assert [trial.editor.name for trial in trials] == ["unedited", "random"]


def test_a_trial_is_addressed_by_the_content_of_its_inputs(model, tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, content in zip(paths, (b"1", b"1", b"2"), strict=True):
        path.write_bytes(content)
    prefixes = [ContextPrefixes(((""),)), ContextPrefixes((("",), ("So. ",)))]
    corpora = [Corpus("wiki", "1", list), Corpus("wiki", "2", list)]

    def hash_with(**inputs: object) -> str:
        trials = make_grid(model, random_update(), inputs=lambda m, d: Inputs(**inputs))
        return trials[1].hash

    same = [hash_with(second_moments=path) for path in paths[:2]]
    assert same[0] == same[1]
    different = [
        hash_with(),
        same[0],
        hash_with(second_moments=paths[2]),
        *(hash_with(context_prefixes=prefix) for prefix in prefixes),
        *(hash_with(corpus=corpus) for corpus in corpora),
    ]
    assert len(set(different)) == len(different)
    with pytest.raises(SecondMomentError, match="cannot read the file"):
        hash_with(second_moments=tmp_path / "none")


def test_the_unedited_model_needs_no_inputs(model):
    given = Inputs(corpus=Corpus("wiki", "1", list))
    with_corpus = make_grid(model, inputs=lambda m, d: given)
    assert with_corpus[0].hash == make_grid(model)[0].hash


# Which cases


def ids(cases: Sequence[EditCase]) -> list[str]:
    return [case.request.case_id for case in cases]


def test_cases_are_the_first_ones_whatever_the_seed():
    for seed in (0, 1):
        (chosen,), _ = select_batches(
            toy_cases(12), 3, sample="first", seed=seed, on_conflict="error"
        )
        assert ids(chosen) == ["0", "1", "2"]


def test_shuffled_cases_are_drawn_with_the_seed_and_nest():
    def draw(n: int, seed: int) -> list[str]:
        (chosen,), _ = select_batches(
            toy_cases(12), n, sample="shuffled", seed=seed, on_conflict="error"
        )
        return ids(chosen)

    assert draw(12, 0) == draw(12, 0) != draw(12, 1)
    assert draw(5, 0) == draw(12, 0)[:5]
    assert sorted(draw(12, 1), key=int) == [str(index) for index in range(12)]


def conflicting_cases() -> list[EditCase]:
    facts = [("Ana", "poet"), ("Bo", "pilot"), ("Ana", "judge"), ("Cy", "baker")]
    return [
        EditCase(
            EditRequest(str(index), subject, "{} is a", target),
            probes=(Probe("efficacy", f"{subject} is a", target, "thief"),),
        )
        for index, (subject, target) in enumerate(facts)
    ]


@pytest.mark.parametrize(
    ("policy", "n", "expected"),
    [("drop-all", 2, ["1", "3"]), ("keep-first", 3, ["0", "1", "3"]), ("error", 2, ["0", "1"])],
)
def test_a_conflict_policy_leaves_as_many_cases_as_were_asked_for(policy, n, expected):
    (chosen,), conflicts = select_batches(
        conflicting_cases(), n, sample="first", seed=0, on_conflict=policy
    )
    assert ids(chosen) == expected
    assert len(conflicts) == (policy != "error")


def test_conflicts_among_the_chosen_cases_are_an_error_by_default(model, tmp_path):
    trials = make_grid(model, n_edits=[3], dataset=Toy(conflicting_cases()), metrics=[Success()])
    with pytest.raises(RequestError, match=r"'poet' .* 'judge'"):
        run_grid(trials, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("policy", "message"),
    [("error", "n_edits 9; expected at most 4. "), ("drop-all", "at most 2 besides 2 dropped")],
)
def test_more_edits_than_cases_is_an_error_that_says_how_many_there_are(
    model, tmp_path, policy, message
):
    trials = make_grid(
        model,
        n_edits=[1, 9],
        dataset=Toy(conflicting_cases()),
        metrics=[Success()],
        on_conflict=policy,
    )
    with pytest.raises(ConfigError, match=message):
        run_grid(trials, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_at_least_one_edit():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        select_batches(toy_cases(2), 0, sample="first", seed=0, on_conflict="error")


def related_cases() -> list[EditCase]:
    return [
        EditCase(
            EditRequest(f"{relation}{index}", f"Ana{index}", "{} is a", "poet", relation),
            probes=(Probe("efficacy", f"Ana{index} is a", "poet", "thief"),),
        )
        for relation, n in (("job", 4), ("town", 2), ("sport", 3))
        for index in range(n)
    ]


def test_batches_are_consecutive_and_share_no_case():
    batches, _ = select_batches(
        toy_cases(12), 3, n_batches=4, sample="first", seed=0, on_conflict="error"
    )
    assert [ids(batch) for batch in batches] == [
        ["0", "1", "2"], ["3", "4", "5"], ["6", "7", "8"], ["9", "10", "11"],
    ]  # fmt: skip


def test_only_conflicts_within_a_batch_are_conflicts():
    batches, _ = select_batches(
        conflicting_cases(), 2, n_batches=2, sample="first", seed=0, on_conflict="error"
    )
    assert [ids(batch) for batch in batches] == [["0", "1"], ["2", "3"]]


@pytest.mark.parametrize(
    ("relations", "n", "expected"),
    [
        (("town",), 2, ["town0", "town1"]),
        (("sport", "job"), 5, ["sport0", "job0", "sport1", "job1", "sport2"]),
    ],
)
def test_relations_are_taken_in_turns(relations, n, expected):
    (chosen,), _ = select_batches(
        related_cases(), n, relations=relations, sample="first", seed=0, on_conflict="error"
    )
    assert ids(chosen) == expected


@pytest.mark.parametrize(
    ("relations", "n", "n_batches", "message"),
    [
        (("job", "town"), 5, 1, "expected at most 4 of job and town in equal shares"),
        (("age",), 1, 1, "got 'age'; expected one of job, sport, town"),
        ((), 5, 2, "n_edits 5 in 2 batches; expected at most 9"),
        ((), 5, 0, "n_batches must be at least 1, got 0"),
    ],
)
def test_a_selection_that_is_not_there_is_an_error(relations, n, n_batches, message):
    with pytest.raises(ConfigError, match=message):
        select_batches(
            related_cases(), n, n_batches=n_batches, relations=relations,
            sample="first", seed=0, on_conflict="error",
        )  # fmt: skip


# What is refused before anything is run


def test_metrics_must_have_something_to_ask_and_names_of_their_own(model, tmp_path):
    def run(metrics: Sequence[Metric], cases: Sequence[EditCase] = ()) -> None:
        run_grid(make_grid(model, metrics=metrics, dataset=Toy(cases)), tmp_path / "run")

    bare = [EditCase(EditRequest(str(i), "Ana", "{} is a", "poet")) for i in range(4)]
    with pytest.raises(ConfigError, match="'success': has nothing to ask about dataset 'toy'"):
        run([Success()], bare)
    with pytest.raises(ConfigError, match="both produce 'efficacy_accuracy'"):
        run([Accuracy(), TokenAccuracy()])
    with pytest.raises(ConfigError, match="got no metric"):
        run([])
    with pytest.raises(ConfigError, match="got no trial"):
        run_grid([], tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Running


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


# Text that no case is about


class WithText(Toy):
    """Facts about jobs, and sentences about other things."""

    def held_out_texts(self) -> Sequence[str]:
        return [f"{name} met Farid Rossi." for name in ("Ana Lund", "Boris Sato", "Elif Quist")]


def perplexities(folder: Path) -> dict[str, dict[str, float]]:
    frame = load_rows([folder])
    found = frame[frame["metric"] == "perplexity"]
    return {
        str(editor): dict(zip(rows["case_id"], rows["value"], strict=True))
        for editor, rows in found.groupby("editor")
    }


def test_texts_are_read_before_and_after(model, tmp_path):
    trials = make_grid(
        model, random_update(1.0), metrics=[Success(), Perplexity()], dataset=WithText()
    )
    run_grid(trials, tmp_path)
    found = perplexities(tmp_path)
    texts = WithText().held_out_texts()
    assert all(
        list(values) == ["held-out-00000", "held-out-00001", "held-out-00002"]
        for values in found.values()
    )
    answers = answer_questions(model, map(Read, texts), seed=0, token_budget=4096)
    expected = [Perplexity().values(text, answers)["perplexity"] for text in texts]
    assert list(found["unedited"].values()) == pytest.approx(expected)
    assert found["random"] != found["unedited"]
    (line,) = (
        line
        for line in summarize([tmp_path]).lines
        if (line.editor, line.metric) == ("unedited", "perplexity")
    )
    assert line.value == pytest.approx(math.prod(expected) ** (1 / 3))
    assert 1 < line.ci_low <= line.value <= line.ci_high
    assert line.n == 3


def test_batches_share_the_texts_between_them(model, tmp_path):
    def measure(n_batches: int) -> dict[str, dict[str, float]]:
        folder = tmp_path / str(n_batches)
        trials = make_grid(
            model,
            random_update(1.0),
            n_edits=[2],
            metrics=[Perplexity()],
            dataset=WithText(),
            n_batches=lambda n: n_batches,
        )
        run_grid(trials, folder)
        assert len(load_rows([folder])) == 2 * 3
        return perplexities(folder)

    # The editor's update is the same for all batches. In the last run, two have nothing to read.
    expected = measure(1)
    for n_batches in (2, 5):
        for editor, values in measure(n_batches).items():
            assert values == pytest.approx(expected[editor], rel=1e-4)


def test_a_dataset_without_texts_is_refused(model, tmp_path):
    with pytest.raises(ConfigError, match=r"'perplexity': .* dataset 'toy', got 0 held-out texts"):
        run_grid(make_grid(model, metrics=[Perplexity()]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_dataset_can_be_asked():
    assert has_questions(Success(), Toy())
    assert has_questions(Length(), Toy())
    assert not has_questions(ReferenceScore(), Toy())
    assert has_questions(Perplexity(), WithText())
    assert not has_questions(Perplexity(), Toy())


# Metrics that know the whole dataset


class Place(Metric):
    """Where in its dataset a case is."""

    name: ClassVar[str] = "place"
    produces: ClassVar[tuple[str, ...]] = ("place",)
    n_fitted: ClassVar[int] = 0

    def __init__(self, ids: Sequence[str] = ()) -> None:
        self._ids = list(ids)

    def fitted(self, cases: Sequence[EditCase]) -> Metric:
        Place.n_fitted += 1
        return Place([case.request.case_id for case in cases])

    def questions(self, case: EditCase) -> tuple[Question, ...]:
        return Success().questions(case)

    def values(self, case: EditCase, answers: Answers) -> dict[str, float]:
        return {"place": self._ids.index(case.request.case_id) / len(self._ids)}


def test_metrics_are_fitted_once_to_all_cases_whichever_are_edited(model, tmp_path):
    before = Place.n_fitted
    trials = make_grid(
        model, random_update(), n_edits=[2, 5], seeds=[0, 1], metrics=[Place()], sample="shuffled"
    )
    run_grid(trials, tmp_path)
    assert Place.n_fitted == before + 1
    frame = load_rows([tmp_path])
    assert len(frame) == 2 * 2 * (2 + 5)
    assert all(frame["value"] == frame["case_id"].astype(int) / 12)


# Resuming


def test_a_resumed_run_skips_what_is_done_and_retries_what_failed(model, tmp_path):
    trials = make_grid(model, Broken(RandomConfig()), random_update())
    run_grid(trials, tmp_path)
    before = rows_of(tmp_path)
    heard = []
    summary = run_grid(
        trials, tmp_path, resume=True, on_trial_finished=lambda trial, _: heard.append(trial)
    )
    assert (summary.n_run, summary.n_skipped) == (1, 2)
    assert [trial.editor.name for trial in heard] == ["broken"]
    assert rows_of(tmp_path) == before


def test_a_folder_with_a_run_is_refused_unless_resumed_with_the_same_configuration(model, tmp_path):
    run_grid(make_grid(model, random_update(1.0)), tmp_path)
    with pytest.raises(RunError, match="holds a run already"):
        run_grid(make_grid(model, random_update(1.0)), tmp_path)
    with pytest.raises(RunError, match=r"random\.scale: got 2\.0; expected 1\.0"):
        run_grid(make_grid(model, random_update(2.0)), tmp_path, resume=True)


class Interrupted(RandomUpdate):
    """Stands for a person at the keyboard, or for the system's memory running out."""

    name: ClassVar[str] = "random"
    strike: Callable[[], None]

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        if resources.seed == 1:
            self.strike()
        return super().edit(model, requests, resources)


def test_an_interrupt_keeps_what_is_finished(model, tmp_path):
    def press() -> None:
        raise KeyboardInterrupt

    editor = Interrupted(RandomConfig())
    editor.strike = press
    before = model.compute_fingerprint()
    with pytest.raises(KeyboardInterrupt):
        run_grid(make_grid(model, editor, seeds=[0, 1]), tmp_path / "run")
    assert model.compute_fingerprint() == before
    assert len(rows_of(tmp_path / "run")) == 3
    trials = make_grid(model, random_update(), seeds=[0, 1])
    summary = run_grid(trials, tmp_path / "run", resume=True)
    assert (summary.n_run, summary.n_skipped) == (1, 3)
    run_grid(trials, tmp_path / "whole")
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_run_killed_between_trials_and_resumed_gives_the_same_rows(model, tmp_path):
    """The killed run is a process of its own: this very file, run as a script."""
    folder = tmp_path / "run"
    process = subprocess.run(
        [sys.executable, __file__, str(folder)], check=False, timeout=120, capture_output=True
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert len(rows_of(folder)) == 3
    trials = make_grid(model, random_update(), seeds=[0, 1], metrics=[Success(), Length()])
    summary = run_grid(trials, folder, resume=True)
    assert (summary.n_run, summary.n_skipped) == (1, 3)
    run_grid(trials, tmp_path / "whole")
    assert rows_of(folder) == rows_of(tmp_path / "whole")
    assert all(json.loads(line) for lines in rows_of(folder).values() for line in lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    doomed = Interrupted(RandomConfig())
    doomed.strike = lambda: os.kill(os.getpid(), signal.SIGKILL)
    run_grid(
        make_grid(tiny_model(n_layers=2), doomed, seeds=[0, 1], metrics=[Success(), Length()]),
        Path(sys.argv[1]),
    )
