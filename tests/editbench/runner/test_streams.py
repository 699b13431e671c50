"""Streams of edits: written in batches into one model, asked at checkpoints, gone on with."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from tests.editbench.runner.toys import (
    Length,
    RandomConfig,
    RandomUpdate,
    Toy,
    make_grid,
    random_update,
    rows_of,
)

from editbench.editors.base import Editor, Resources
from editbench.editors.memit import MemitHistory, MemitHistoryConfig
from editbench.edits.edit import Edit
from editbench.errors import ConfigError, RequestError, UnknownNameError
from editbench.metrics.base import TextMetric
from editbench.metrics.probes import Accuracy, Success
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.questions import Answers, Read
from editbench.requests import EditCase, EditRequest
from editbench.results.collection import collect
from editbench.results.comparison import compare
from editbench.results.frame import load_rows
from editbench.results.manifest import TrialDescription
from editbench.results.report import summarize
from editbench.results.store import read_trial, transcripts_path
from editbench.results.tables.summary_table import tabulate_summary
from editbench.results.transcript import read_transcripts
from editbench.runner import Inputs, StopRule, Trial, run_grid
from editbench.testing import tiny_model, toy_cases, toy_corpus

N = 10


class Nudging(RandomUpdate):
    """Adds another random update for each batch, and may be stopped in front of one."""

    name: ClassVar[str] = "nudging"
    strike: Callable[[], None] | None = None
    strikes_at: int = -1

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        first = int(requests[0].case_id)
        if first == self.strikes_at and self.strike is not None:
            self.strike()
        return super().edit(model, requests, Resources(seed=first))


class Own(Nudging):
    """Brings a stream of its own, which keeps what it carries to itself."""

    name: ClassVar[str] = "own"

    def edit_stream(
        self, model: EditableModel, batches: Iterator[Sequence[EditRequest]], resources: Resources
    ) -> Iterator[Edit]:
        plain = Nudging(self.config)
        plain.strike, plain.strikes_at = self.strike, self.strikes_at
        yield from plain.edit_stream(model, batches, resources)


def nudging(scale: float = 0.3, kind: type[Nudging] = Nudging) -> Nudging:
    return kind(RandomConfig(scale=scale))


def make_stream(
    model: EditableModel,
    *editors: Editor,
    checkpoints: Sequence[int] = (4, 8),
    batch_size: int | None = 2,
    **options: object,
) -> list[Trial]:
    return make_grid(
        model,
        *editors,
        **{"n_edits": [N], **options},
        batch_size=batch_size,
        checkpoints=lambda n: checkpoints,
    )


def test_at_each_checkpoint_everything_so_far_is_asked(model, tmp_path):
    editor = nudging()
    trials = make_stream(model, editor, metrics=[Success()])
    summary = run_grid(trials, tmp_path)
    assert summary.failures == ()
    frame = load_rows([tmp_path])
    assert set(frame["batch_size"]) == {2}
    cases, metric = toy_cases(12)[:N], Success()
    requests = [case.request for case in cases]
    batches = [requests[start : start + 2] for start in range(0, N, 2)]
    edits = list(editor.edit_stream(model, batches, Resources(seed=0)))
    for n_written in (4, 8, 10):
        asked = cases[:n_written]
        questions = [question for case in asked for question in metric.questions(case)]
        with edits[n_written // 2 - 1].applied(model):
            answers = answer_questions(model, questions, seed=0, token_budget=500)
        rows = frame[(frame["editor"] == "nudging") & (frame["checkpoint"] == n_written)]
        assert list(dict.fromkeys(rows["case_id"])) == [case.request.case_id for case in asked]
        for case in asked:
            own = rows[rows["case_id"] == case.request.case_id]
            assert dict(zip(own["metric"], own["value"], strict=True)) == metric.values(
                case, answers
            )
    unedited = frame[frame["editor"] == "unedited"]
    assert sorted(set(unedited["checkpoint"])) == [4, 8, 10]
    record = read_trial(tmp_path, trials[1].hash)
    assert [each.n_written for each in record.checkpoints] == [4, 8, 10]
    assert record.edits[0]["n_edits"] == N
    assert len(record.edits) == 1
    norms = [sum(each.update_norms.values()) for each in record.checkpoints]
    assert 0 < norms[0] < norms[-1]
    assert [fact.batch for fact in record.facts] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(list(read_transcripts(transcripts_path(tmp_path, trials[1].hash)))) == N
    assert not (tmp_path / "streams").exists()


def test_what_is_left_is_the_last_batch(model, tmp_path):
    trials = make_stream(model, nudging(), batch_size=4, checkpoints=())
    run_grid(trials, tmp_path)
    record = read_trial(tmp_path, trials[1].hash)
    assert len(record.edits[0]["extra"]["batches"]) == 3
    assert [fact.batch for fact in record.facts] == [0] * 4 + [1] * 4 + [2] * 2


def test_a_batch_of_all_gives_what_all_at_once_gives(model, tmp_path):
    run_grid(make_stream(model, random_update(), batch_size=N, checkpoints=()), tmp_path / "one")
    run_grid(make_grid(model, random_update(), n_edits=[N]), tmp_path / "none")
    one, none = (load_rows([tmp_path / name]) for name in ("one", "none"))
    columns = ["editor", "case_id", "metric", "value", "checkpoint"]
    assert one[columns].to_numpy().tolist() == none[columns].to_numpy().tolist()
    assert none["batch_size"].isna().all()


def test_what_is_written_at_once_has_the_address_that_it_had():
    known = {
        "editor": "memit", "config": {"n_steps": 20}, "model": "gpt2", "model_fingerprint": "f1",
        "dataset": "toy", "dataset_fingerprint": "d1", "n_edits": 2, "n_batches": 3,
        "relations": ("job",), "seed": 1, "sample": "shuffled", "on_conflict": "drop-all",
        "metrics": {"success": 1}, "inputs": {"corpus": "a"}, "versions": {"torch": "2"},
    }  # fmt: skip
    plain = TrialDescription(**known)
    assert plain.hash == "85ce887ebf7e32c6"
    streams = [
        TrialDescription(**known, batch_size=1, checkpoints=(1, 2)),
        TrialDescription(**known, batch_size=1, checkpoints=(2,)),
        TrialDescription(**known, batch_size=1, checkpoints=(2,), stop_when="score<50"),
    ]
    assert len({plain.hash, *(each.hash for each in streams)}) == 4


def test_rows_of_earlier_versions_are_read(model, tmp_path):
    """They say nothing of batches and checkpoints: all had been written."""
    (trial,) = make_grid(model, n_edits=[4])
    run_grid([trial], tmp_path)
    path = tmp_path / "trials" / trial.hash
    new = ("batch_size", "checkpoint", "fact_status")
    rows = [json.loads(line) for line in (path / "rows.jsonl").read_text().splitlines()]
    old = [{k: v for k, v in row.items() if k not in new} for row in rows]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    record = json.loads((path / "trial.json").read_text())
    for name in ("checksum", "files", "checkpoints", "facts", "stopped"):
        del record[name]
    (path / "trial.json").write_text(json.dumps(record))
    manifest = json.loads((tmp_path / "run.json").read_text())
    del manifest["checksum"]
    for name in ("batch_size", "checkpoints", "stop_when"):
        del manifest["trials"][trial.hash][name]
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    (line, *_) = summarize([tmp_path]).lines
    assert (line.n_edits, line.batch_size, line.checkpoint) == (4, None, 4)
    assert run_grid([trial], tmp_path, resume=True).n_skipped == 1


def press() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", [Nudging, Own])
@pytest.mark.parametrize("strikes_at", [0, 4, 6, 8])
def test_a_stream_goes_on_from_its_last_checkpoint(model, tmp_path, kind, strikes_at):
    metrics = [Success(), Length()]
    doomed = nudging(kind=kind)
    doomed.strike, doomed.strikes_at = press, strikes_at
    with pytest.raises(KeyboardInterrupt):
        run_grid(make_stream(model, doomed, metrics=metrics), tmp_path / "killed")
    (folder,) = (tmp_path / "killed").glob("streams/*") if strikes_at else [None]
    if folder is not None:
        kept = sorted(path.name for path in folder.iterdir())
        assert kept == [f"{n:08d}" for n in (4, 8) if n <= strikes_at]
        n_carried = len(list(folder.glob("*/carried.safetensors")))
        assert n_carried == (kind is Nudging)

    written = []
    later = nudging(kind=kind)
    later.strike, later.strikes_at = lambda: written.append(4), 4
    summary = run_grid(make_stream(model, later, metrics=metrics), tmp_path / "killed", resume=True)
    assert summary.failures == ()
    # The third batch is before the last checkpoint in one case, where what was carried is known.
    assert written == ([] if (kind, strikes_at) == (Nudging, 8) else [4])
    run_grid(make_stream(model, nudging(kind=kind), metrics=metrics), tmp_path / "whole")
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    assert not (tmp_path / "killed" / "streams").exists()


def test_what_was_asked_is_not_asked_again(model, tmp_path, monkeypatch):
    from editbench.runner import conditions

    asked = []
    ask = conditions.answer_questions

    def count(model, questions, **more):
        asked.append(len(questions))
        return ask(model, questions, **more)

    monkeypatch.setattr(conditions, "answer_questions", count)
    for kind in (Nudging, Own):
        doomed = nudging(kind=kind)
        doomed.strike, doomed.strikes_at = press, 8
        with pytest.raises(KeyboardInterrupt):
            run_grid(make_stream(model, doomed), tmp_path / kind.name)
        asked.clear()
        run_grid(make_stream(model, nudging(kind=kind)), tmp_path / kind.name, resume=True)
        assert len(asked) == 1


def test_a_stream_that_failed_goes_on_from_its_last_checkpoint(model, tmp_path):
    def run_out() -> None:
        raise RuntimeError("no more")

    doomed = nudging()
    doomed.strike, doomed.strikes_at = run_out, 6
    summary = run_grid(make_stream(model, doomed), tmp_path)
    assert [message for _, message in summary.failures] == ["RuntimeError: no more"]
    written = []
    later = nudging()
    later.strike, later.strikes_at = lambda: written.append(0), 0
    assert run_grid(make_stream(model, later), tmp_path, resume=True).failures == ()
    assert written == []
    assert not (tmp_path / "streams").exists()


@pytest.mark.parametrize("file", ["checkpoint.json", "carried.safetensors"])
def test_a_damaged_checkpoint_is_said_and_made_again(model, tmp_path, file):
    doomed = nudging()
    doomed.strike, doomed.strikes_at = press, 8
    with pytest.raises(KeyboardInterrupt):
        run_grid(make_stream(model, doomed), tmp_path / "killed")
    (path,) = (tmp_path / "killed").glob(f"streams/*/00000008/{file}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    summary = run_grid(make_stream(model, nudging()), tmp_path / "killed", resume=True)
    assert any("a checkpoint cannot be read" in warning for warning in summary.warnings)
    run_grid(make_stream(model, nudging()), tmp_path / "whole")
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")


def revised() -> list[EditCase]:
    """Ten facts, of which 5 is about the subject of 1, with another target, and 7 says 2 again."""
    cases = toy_cases(N)
    for place, earlier, target in ((5, 1, "juggler"), (7, 2, cases[2].request.target)):
        old = cases[earlier].request
        new = EditRequest(str(place), old.subject, old.prompt, target, old.relation)
        probes = cases[earlier].probes
        cases[place] = EditCase(new, cases[earlier].target_true, probes)
    return cases


def test_a_later_fact_supersedes_an_earlier_one(model, tmp_path):
    trials = make_stream(model, nudging(), dataset=Toy(revised()))
    run_grid(trials, tmp_path)
    frame = load_rows([tmp_path])
    for n_written, is_asked in ((4, True), (8, False), (10, False)):
        rows = frame[frame["checkpoint"] == n_written]
        assert ("1" in set(rows["case_id"])) == is_asked
        assert "2" in set(rows["case_id"])
    record = read_trial(tmp_path, trials[1].hash)
    assert [each.n_superseded for each in record.checkpoints] == [0, 1, 1]
    told = {fact.case_id: fact for fact in record.facts}
    assert (told["1"].status, told["1"].superseded_by) == ("superseded", "5")
    assert record.fact_statuses["1"] == "superseded: 5"
    assert {fact.status for name, fact in told.items() if name != "1"} == {None}
    shown = {each.case_id for each in read_transcripts(transcripts_path(tmp_path, trials[1].hash))}
    assert "1" in shown  # to be read, with what became of it


def test_facts_of_one_batch_may_not_contradict_each_other(model):
    with pytest.raises(RequestError, match="conflicting requests"):
        run_grid(
            make_stream(model, nudging(), dataset=Toy(revised()), batch_size=N, checkpoints=()),
            Path("x"),
        )


class Readable(Toy):
    """Has held-out texts."""

    name: ClassVar[str] = "readable"

    def held_out_texts(self) -> Sequence[str]:
        return list(toy_corpus().texts())[:6]


class Surprise(TextMetric):
    """How unlikely a text is, per token: grows as a model breaks."""

    name: ClassVar[str] = "surprise"
    produces: ClassVar[tuple[str, ...]] = ("surprise",)
    bounds: ClassVar[tuple[float, float]] = (0.0, float("inf"))

    def questions(self, text: str) -> tuple[Read, ...]:
        return (Read(text),)

    def values(self, text: str, answers: Answers) -> dict[str, float]:
        return {"surprise": -answers[Read(text)].mean_log_prob}


def test_a_stream_stops_where_a_metric_has_gone_too_far(model, tmp_path):
    options = {"metrics": [Accuracy(), Surprise()], "dataset": Readable()}
    trials = make_stream(
        model, nudging(3.0), stop_when=StopRule.parse("surprise>1.001x"), **options
    )
    summary = run_grid(trials, tmp_path)
    ((stopped, why),) = summary.stopped
    assert stopped.editor.name == "nudging"
    assert why.startswith("after 4 of 10 facts: surprise ")
    record = read_trial(tmp_path, trials[1].hash)
    assert (record.status, record.stopped) == ("ok", why)
    assert len(record.facts) == 4
    report = summarize([tmp_path])
    last = {line.editor: line.checkpoint for line in report.last_lines}
    assert last == {"unedited": 10, "nudging": 4}
    assert any(f"stopped {why}" in warning for warning in tabulate_summary(report).warnings)
    differences = compare([tmp_path], "unedited").differences
    assert {each.checkpoint for each in differences} == {4}  # the last that both have
    whole = make_stream(model, nudging(3.0), stop_when=StopRule.parse("surprise>99"), **options)
    assert run_grid(whole, tmp_path / "whole").stopped == ()


def test_a_rule_without_a_number_at_a_checkpoint_does_not_judge_there(model, tmp_path):
    cases = [
        replace(case, probes=case.probes[: 1 if n < 4 else 3])
        for n, case in enumerate(toy_cases(12))
    ]
    rule = StopRule.parse("paraphrase_success<101")
    trials = make_stream(model, nudging(), stop_when=rule, dataset=Toy(cases), metrics=[Success()])
    summary = run_grid(trials, tmp_path)
    assert summary.failures == ()
    assert any("no fact has a paraphrase_success" in warning for warning in summary.warnings)
    ((_, why),) = summary.stopped
    assert why.startswith("after 8 of 10 facts")


def test_a_stream_that_breaks_its_rule_at_the_end_has_not_been_stopped(model, tmp_path):
    rule = StopRule.parse("efficacy_success<101")
    trials = make_stream(model, nudging(), stop_when=rule, checkpoints=(), metrics=[Success()])
    summary = run_grid(trials, tmp_path)
    assert summary.stopped == ()
    assert any("broken when all facts are written" in warning for warning in summary.warnings)


@pytest.mark.parametrize("text", ["score<50", "score<99.99999", "surprise>1234567", "a>1.1x"])
def test_a_rule_is_recorded_as_it_is(text):
    assert str(StopRule.parse(text)).removesuffix(".0") == text
    assert StopRule.parse(str(StopRule.parse(text))) == StopRule.parse(text)


def test_a_fact_that_is_restored_is_as_old_as_its_last_writing(model, tmp_path):
    def say(case, target, case_id):
        return replace(case, request=replace(case.request, target=target, case_id=case_id))

    first, *others = toy_cases(12)
    old, new = first.request.target, others[0].request.target
    cases = [first, *others[:2], say(first, new, "100"), *others[2:4], say(first, old, "101")]
    trials = make_stream(
        model, nudging(), n_edits=[7], batch_size=1, checkpoints=(), dataset=Toy(cases),
        metrics=[Success()],
    )  # fmt: skip
    assert run_grid(trials, tmp_path).failures == ()
    facts = {each.case_id: each for each in read_trial(tmp_path, trials[1].hash).facts}
    assert facts["100"].status == "superseded"
    assert facts[first.request.case_id].batch == facts["101"].batch == 6


def test_a_report_has_lines_of_all_checkpoints_and_tables_of_the_last(model, tmp_path):
    run_grid(make_stream(model, nudging()), tmp_path)
    report = summarize([tmp_path])
    efficacy = [
        line
        for line in report.lines
        if line.editor == "nudging" and line.metric == "efficacy_success"
    ]
    assert [(line.checkpoint, line.n, line.batch_size) for line in efficacy] == [
        (4, 4, 2), (8, 8, 2), (10, 10, 2)
    ]  # fmt: skip
    assert {line.checkpoint for line in report.last_lines} == {10}
    table = tabulate_summary(report)
    assert "batches of 2" in table.title
    assert sum(len(section) for section in table.sections) == 2
    values = collect([tmp_path]).values
    assert {len(each) for each in values.values()} == {10}


def test_what_does_not_go_together_is_refused(model):
    def refuse(says: str, kind: type[Exception] = ConfigError, **options: object) -> None:
        with pytest.raises(kind, match=says):
            run_grid(make_stream(model, nudging(), **options), Path("x"))

    refuse("no batch ends at a checkpoint, got 5 of 10", checkpoints=[5])
    refuse("no batch ends at a checkpoint, got 12 of 10", checkpoints=[12])
    refuse("3 separate ones", n_batches=lambda n: 3, n_edits=[3])
    refuse("no batch size", batch_size=None)
    refuse("'perplexity'", UnknownNameError, stop_when=StopRule.parse("perplexity>2"))


def memit_stream(model: EditableModel) -> list[Trial]:
    config = MemitHistoryConfig.parse(
        {
            "critical_layers": [0, 1], "preservation_weight": 5, "n_steps": 3, "learning_rate": 0.2,
            "learning_rate_unit": "relative", "second_moment_tokens": 2_000,
        },
        "test",
    )  # fmt: skip
    return make_stream(
        model,
        MemitHistory(config),
        checkpoints=(2, 4, 6, 8),
        metrics=[Success(), Accuracy()],
        inputs=lambda model, _: Inputs(corpus=toy_corpus()),
    )


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_stream_killed_at_random_points_gives_the_same_rows(tmp_path):
    """The killed runs are processes of their own: this very module, run as a script."""
    root = Path(__file__).parents[3]
    module = ".".join(Path(__file__).relative_to(root).with_suffix("").parts)

    @contextmanager
    def started(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
        command = [sys.executable, "-m", module, str(folder), str(tmp_path / "cache")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, cwd=root, env=environment) as process:
            yield process

    def finish(folder: Path) -> None:
        with started(folder) as process:
            assert process.wait(timeout=200) == 0

    def kept() -> int:
        return len(list(tmp_path.glob("killed/streams/*/0*")))

    finish(tmp_path / "whole")
    chance, n_kept = random.Random(0), []
    for _ in range(5):
        wanted = kept() + chance.choice([0, 1])
        with started(tmp_path / "killed") as process:
            # It takes seconds to import everything, and then fractions of one to do it all.
            while process.poll() is None:
                if (tmp_path / "killed" / ".lock").exists() and kept() >= wanted:
                    break
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        n_kept.append(kept())
    finish(tmp_path / "killed")
    assert any(n_kept), "no kill has come between two checkpoints"
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    assert not [path for path in tmp_path.glob("killed/**/*") if "unfinished" in path.name]


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    out, cache = map(Path, sys.argv[1:])
    run_grid(
        memit_stream(tiny_model(n_layers=2)),
        out,
        cache=cache / out.name,
        resume=(out / "run.json").exists(),
    )
