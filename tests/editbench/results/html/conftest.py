import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from editbench.results.collection import collect
from editbench.results.html import Page, build_page
from editbench.results.manifest import MetricDescription, RunManifest, TrialDescription
from editbench.results.row import Row
from editbench.results.store import RunStore, TrialRecord
from editbench.results.transcript import (
    CaseTranscript,
    PortabilityTranscript,
    ProbeTranscript,
    QueryTranscript,
)

KINDS = ("efficacy", "paraphrase", "neighborhood")
METRICS = tuple(
    MetricDescription(
        name=name,
        version=1,
        produces=tuple(f"{kind}_{name}" for kind in KINDS),
        aggregates={score: tuple(f"{kind}_{name}" for kind in KINDS)},
    )
    for name, score in (("success", "score"), ("accuracy", "accuracy_score"))
)
HOSTILE = (
    "<script>window.hacked = true</script>",
    "</script><img src=x onerror='window.hacked = true'>",
    '"><svg onload="window.hacked = true">&amp;',
    "<!-- {{ 7 * 7 }} --><b>bold</b>",
    "Zoë 東京 🗼 \u202eright to left",
)
"""Subjects of the first cases of every run."""


TOLD = (
    {"case_id": "case-0", "status": "clamped"},
    {"case_id": "case-1", "status": "skipped", "why": "its key is <b>closed</b>"},
)
"""What the card of MEMIT's edit says of the first facts."""


def describe(editor: str, n_edits: int) -> TrialDescription:
    return TrialDescription(
        editor=editor,
        config={} if editor == "unedited" else {"n_steps": 20},
        model="a <i>model</i>",
        model_fingerprint="f",
        dataset="toy",
        dataset_fingerprint="d",
        n_edits=n_edits,
        seed=0,
        sample="first",
        on_conflict="error",
        metrics={"success": 1, "accuracy": 1},
    )


def tell(case: int, editor: str) -> CaseTranscript:
    """A case, with answers that go wrong for every 10th, 7th and 5th case of an edited model."""
    subject = HOSTILE[case] if case < len(HOSTILE) else f"Subject {case}"
    target, old = f"new {case % 3}", f"old {case % 3}"
    edited = editor != "unedited"
    efficacy, paraphrase = (edited and case % 10 != 9, edited and case % 7 != 6)
    specificity = not (edited and case % 5 == 4)

    def probe(kind: str, prompt: str, expected: str, other: str, holds: bool) -> ProbeTranscript:
        return ProbeTranscript(
            kind=kind,
            prompt=prompt,
            expected=expected,
            alternative=other,
            log_prob_expected=-0.25 if holds else -7.0,
            log_prob_alternative=-7.0 if holds else -0.25,
        )

    return CaseTranscript(
        case_id=f"case-{case}",
        relation=f"relation {case % 4}",
        subject=subject,
        prompt=f"{subject} is",
        target=target,
        target_true=old,
        probes=(
            probe("efficacy", f"{subject} is", target, old, efficacy),
            probe("paraphrase", f"They say {subject} is", target, old, paraphrase),
            probe("paraphrase", f"We hear {subject} is", target, old, edited),
            probe("neighborhood", f"Neighbor {case} is", old, target, specificity),
        ),
        portability=tell_portability(subject, edited=edited) if case % 23 == 0 else (),
        texts=((f"{subject} lives", f"{subject} lives in {target if edited else old}, say all."),),
    )


def tell_portability(subject: str, *, edited: bool) -> tuple[PortabilityTranscript, ...]:
    """A probe that the edit brings about, one that an unknown condition leaves out, one masked."""

    def query(prompt: str, answers: tuple[str, ...], knows: bool) -> QueryTranscript:
        return QueryTranscript(
            prompt=prompt,
            answers=answers,
            answer=answers[-1],
            log_prob=-0.5 if knows else -6.0,
            is_likeliest=knows,
            text=f" {answers[-1]}." if knows else " Nowhere, <b>they</b> say.",
            is_written=knows,
        )

    return (
        PortabilityTranscript(
            kind="multi_hop",
            accuracy=edited,
            generation=edited,
            queries=(
                query(f"The home of {subject} lies in", ("Osk", "Port Osk"), edited),
                query(f"Where is the home of {subject}?", ("Osk", "Port Osk"), False),
            ),
            conditions=(query("The harbor lies in", ("Port Osk",), True),),
        ),
        PortabilityTranscript(
            kind="reasoning",
            generation=edited,
            queries=(query(f"{subject} pays taxes in", ("Velm",), edited),),
            conditions=(query("Taxes of the harbor go to", ("Velm",), False),),
        ),
        PortabilityTranscript(
            kind="reversal",
            is_masked=True,
            queries=(QueryTranscript(prompt="Who lives there?", answers=(subject,)),),
        ),
    )


def count(trial: TrialDescription, transcript: CaseTranscript) -> Iterator[Row]:
    for metric in METRICS:
        for kind, name in zip(KINDS, metric.produces, strict=True):
            held = [
                (probe.log_prob_expected or 0) > (probe.log_prob_alternative or 0)
                for probe in transcript.probes
                if probe.kind == kind
            ]
            value = 100 * sum(held) / len(held)
            yield Row(
                trial.hash, trial.editor, trial.model, trial.dataset, trial.n_edits, trial.seed,
                transcript.case_id, name, value, "ok",
            )  # fmt: skip


@pytest.fixture(scope="session")
def write_cases(tmp_path_factory) -> Callable[..., Path]:
    """Writes a run folder with transcripts: three editors' trials done, one failed, one to come."""

    def write(
        n_cases: int, *, name: str = "run", whole: bool = False, with_cases: bool = True
    ) -> Path:
        editors = ("unedited", "rome", "memit") + (() if whole else ("ft-w", "mend"))
        trials = {editor: describe(editor, n_cases) for editor in editors}
        folder = tmp_path_factory.mktemp("runs") / name
        manifest = RunManifest(
            created="2026-01-01T00:00:00+00:00",
            provenance={
                "command": ["editbench", "run", "--out", "<b>here</b>"],
                "versions": {"torch": "2.13.0"},
                "python": "3.11.7",
                "models": [{"name": "a <i>model</i>", "n_parameters": 1234567}],
            },
            metrics=METRICS,
            trials={trial.hash: trial for trial in trials.values()},
        )
        with RunStore.open(folder, manifest, resume=False) as store:
            for editor in ("unedited", "rome", "memit"):
                told = [tell(case, editor) for case in range(n_cases)]
                rows = [row for transcript in told for row in count(trials[editor], transcript)]
                store.write(
                    TrialRecord(
                        trial=trials[editor].hash,
                        status="ok",
                        finished="2026-01-01T00:01:00+00:00",
                        seconds={"edit": 1.0, "answer": 2.0},
                        peak_memory_bytes={"process": 2**30},
                        warnings=("a <u>warning</u>",),
                        edits=({"extra": {"facts": list(TOLD)}},) if editor == "memit" else (),
                    ),
                    rows,
                    told if with_cases else (),
                )
            if not whole:
                trial = trials["ft-w"]
                message = "RuntimeError: <script>window.hacked = true</script>"
                store.write(
                    TrialRecord(
                        trial=trial.hash,
                        status="error",
                        message=message,
                        traceback=f"Traceback\n{message}",
                        finished="2026-01-01T00:01:00+00:00",
                    ),
                    [
                        Row(
                            trial.hash, "ft-w", trial.model, "toy", n_cases, 0, None, None, None,
                            "error", message,
                        )
                    ],
                )  # fmt: skip
        return folder

    return write


@pytest.fixture(scope="session")
def make_page() -> Callable[..., Page]:
    def make(*folders: Path, **options: object) -> Page:
        return build_page(folders, collect(folders), **options)

    return make


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """A headless Chromium; skips where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new",
        "--no-sandbox",  # it cannot be had as root
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--lang=en",
        "--window-size=1280,900",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield started
    finally:
        started.quit()
