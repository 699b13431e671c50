"""The reference's causal traces, cell by cell."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from editbench.models.editable import EditableModel
from editbench.models.loading import load_model
from editbench.tracing.facts import KnownFact
from editbench.tracing.noise import measure_spread
from editbench.tracing.prompts import prompt_of
from editbench.tracing.settings import TraceSettings
from editbench.tracing.tracer import Tracer
from editbench.tracing.traces import TracedPrompt

REFERENCE_NAMES = {"hidden": "hidden", "mlp": "mlp", "attention": "attn"}


@dataclass
class Golden:
    """One model of the reference's traces, its prompts, and what it found there."""

    model: EditableModel
    stated: dict[str, Any]
    scores: dict[str, np.ndarray]
    subjects: list[str]

    def prompt(self, case: dict[str, Any]) -> TracedPrompt:
        start = case["prompt"].index(case["subject"])
        fact = KnownFact(str(case["case_id"]), case["subject"], case["prompt"], start, "?")
        return prompt_of(self.model, fact)


@pytest.fixture(scope="module", params=["gpt2", "gptj"])
def golden(request: pytest.FixtureRequest, shared: Path) -> Golden:
    folder = shared / "reference" / "golden" / request.param
    records = json.loads((folder / "requests.json").read_text())
    return Golden(
        model=load_model(str(folder / "model"), specs={}, device="cpu"),
        stated=json.loads((folder / "causal_trace.json").read_text()),
        scores=load_file(folder / "causal_trace.safetensors"),
        subjects=[record["requested_rewrite"]["subject"] for record in records],
    )


def test_scores_are_the_reference_s(golden: Golden) -> None:
    stated = golden.stated
    settings = TraceSettings(
        noise_level=stated["noise_level"],
        n_samples=stated["samples"],
        window=stated["window"],
        noise_source="reference",
        seed=0,
        severed=False,
    )
    tracer = Tracer(golden.model, settings)
    for case in stated["cases"]:
        prompt = golden.prompt(case)
        assert list(prompt.token_ids) == case["input_ids"]
        assert [prompt.subject.start, prompt.subject.stop] == case["subject_range"]
        assert prompt.answer_text == case["answer"]
        trace = tracer.trace(prompt)
        assert trace.high_score == pytest.approx(case["high_score"], rel=1e-4)
        assert trace.low_score == pytest.approx(case["low_score"], rel=1e-4)
        for kind, name in REFERENCE_NAMES.items():
            expected = golden.scores[f"case.{case['case_id']}.{name}"]
            worst = np.abs(trace.scores[kind] / expected - 1).max()
            assert worst < 1e-3, f"{kind}: {worst}"
    assert tracer.replay_failure is None


def test_the_noise_is_three_spreads_of_the_subjects_embeddings(golden: Golden) -> None:
    facts = [KnownFact("", subject, subject, 0, "?") for subject in golden.subjects]
    spread = measure_spread(golden.model, facts)
    assert 3 * spread == pytest.approx(golden.stated["noise_level"], rel=1e-6)
