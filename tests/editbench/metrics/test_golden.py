"""Metrics against what the reference implementation measured on its golden models."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from editbench.metrics.generation import TextSimilarity, weighted_entropy
from editbench.metrics.probes import Accuracy, Success, TokenAccuracy
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.models.loading import load_model
from editbench.questions import Read, Score, ScoreAnswer
from editbench.requests import EditCase, EditRequest, Probe

REFERENCE_NAMES = {
    "efficacy": "rewrite_prompts",
    "paraphrase": "paraphrase_prompts",
    "neighborhood": "neighborhood_prompts",
}
# Means over the records of eval.json, in the order above, by the reference's summary.
MEAN_SUCCESS = {
    ("gpt2", "pre"): (0.0, 20.0, 100.0),
    ("gpt2", "post"): (20.0, 35.0, 290 / 3),
    ("gptj", "pre"): (0.0, 12.5, 100.0),
    ("gptj", "post"): (60.0, 32.5, 535 / 6),
}


@pytest.fixture(scope="module", params=["gpt2", "gptj"])
def golden(request: pytest.FixtureRequest, shared: Path) -> Path:
    folder = shared / "reference" / "golden" / request.param
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    return folder


@pytest.fixture(scope="module")
def model(golden: Path) -> EditableModel:
    return load_model(str(golden / "model"), specs={})


def read(golden: Path, name: str) -> Any:
    return json.loads((golden / name).read_text(encoding="utf-8"))


def counterfact_case(record: dict[str, Any]) -> EditCase:
    rewrite = record["requested_rewrite"]
    new, true = rewrite["target_new"]["str"], rewrite["target_true"]["str"]
    request = EditRequest(str(record["case_id"]), rewrite["subject"], rewrite["prompt"], new)
    probes = [Probe("efficacy", request.text, new, true)]
    probes += [Probe("paraphrase", p, new, true) for p in record["paraphrase_prompts"]]
    probes += [Probe("neighborhood", p, true, new) for p in record["neighborhood_prompts"]]
    return EditCase(request, target_true=true, probes=tuple(probes))


def stored_answers(case: EditCase, measured: dict[str, Any]) -> dict[Score, ScoreAnswer]:
    """The reference's mean NLLs, as if each target were one token."""
    answers = {}
    for kind, name in REFERENCE_NAMES.items():
        probes = [probe for probe in case.probes if probe.kind == kind]
        rows = zip(probes, measured[f"{name}_probs"], measured[f"{name}_correct"], strict=True)
        for probe, nll, correct in rows:
            new, true = nll["target_new"], nll["target_true"]
            ours = (true, new) if kind == "neighborhood" else (new, true)
            answers[Score(probe.prompt, probe.expected)] = ScoreAnswer((-ours[0],), (correct,))
            answers[Score(probe.prompt, probe.alternative)] = ScoreAnswer((-ours[1],), (False,))
    return answers


@pytest.mark.parametrize("time", ["pre", "post"])
def test_success_and_accuracy_of_the_stored_numbers(golden, time):
    records, measured = read(golden, "requests.json"), read(golden, "eval.json")
    totals = dict.fromkeys(Success.produces, 0.0)
    for record, numbers in zip(records, measured[f"counterfact_{time}"], strict=True):
        case = counterfact_case(record)
        answers = stored_answers(case, numbers)
        accuracy = Accuracy().values(case, answers)
        for kind, name in REFERENCE_NAMES.items():
            right = numbers[f"{name}_correct"]
            assert accuracy[f"{kind}_accuracy"] == pytest.approx(100 * sum(right) / len(right))
        for name, value in Success().values(case, answers).items():
            totals[name] += value
    means = [total / len(records) for total in totals.values()]
    assert means == pytest.approx(MEAN_SUCCESS[golden.name, time])


def test_the_model_itself_gives_the_stored_numbers_before_editing(golden, model):
    records, measured = read(golden, "requests.json"), read(golden, "eval.json")
    cases = [counterfact_case(record) for record in records]
    questions = [q for case in cases for q in Success().questions(case)]
    answers = answer_questions(model, questions, seed=0, token_budget=2000)
    for case, numbers in zip(cases, measured["counterfact_pre"], strict=True):
        expected = stored_answers(case, numbers)
        for question, stored in expected.items():
            assert answers[question].mean_log_prob == pytest.approx(stored.mean_log_prob, abs=1e-3)
        assert Success().values(case, answers) == Success().values(case, expected)
        assert Accuracy().values(case, answers) == Accuracy().values(case, expected)


def zsre_case(record: dict[str, Any]) -> EditCase:
    rewrite = record["requested_rewrite"]
    target = rewrite["target_new"]["str"]
    request = EditRequest(str(record["case_id"]), rewrite["subject"], rewrite["prompt"], target)
    neighbors = record["neighborhood_prompts"]  # the answer, one token at a time
    answer = "".join(piece["target"] for piece in neighbors).strip()
    return EditCase(
        request,
        probes=(
            Probe("efficacy", request.text, target),
            *(Probe("paraphrase", prompt, target) for prompt in record["paraphrase_prompts"]),
            Probe("neighborhood", neighbors[0]["prompt"], answer),
        ),
    )


def test_token_accuracy_is_the_reference_s_zsre_metric(golden, model):
    measured = read(golden, "eval.json")
    cases = [zsre_case(record) for record in measured["zsre_records"]]
    questions = [q for case in cases for q in TokenAccuracy().questions(case)]
    answers = answer_questions(model, questions, seed=0, token_budget=2000)
    for case, numbers in zip(cases, measured["zsre_pre"], strict=True):
        values = TokenAccuracy().values(case, answers)
        for kind, name in REFERENCE_NAMES.items():
            right = numbers[f"{name}_correct"]
            assert values[f"{kind}_accuracy"] == pytest.approx(100 * sum(right) / len(right))


def test_entropy_is_the_reference_s_on_its_words(golden):
    measured = read(golden, "text_metrics.json")  # whose words are what stands between spaces
    values = [weighted_entropy(text.split()) for text in measured["texts"]]
    assert values == pytest.approx(measured["ngram_entropy_each"])
    assert sum(values) / len(values) == pytest.approx(measured["ngram_entropy_mean"])


def test_similarity_is_the_reference_s(golden):
    pairs = read(golden, "text_metrics.json")["tfidf_pairs"]
    corpus = [document["text"] for document in read(golden, "covariance_corpus.json")[:200]]
    similarity = TextSimilarity(corpus)
    for pair in pairs:
        assert similarity.compare([pair["a"]], (pair["b"],)) == pytest.approx(pair["sim"])
    assert len(pairs) > 1


def test_perplexity_is_the_reference_s_but_for_its_divisor(golden, model):
    """The reference divides the sum over all tokens but the first by the number of all tokens."""
    for record in read(golden, "text_metrics.json")["perplexity"]:
        n_tokens = record["max_input_length"]
        text = model.tokens.decode(model.tokens.encode(record["text"])[:n_tokens])
        answers = answer_questions(model, [Read(text)], seed=0, token_budget=500)
        log_probs = answers[Read(text)].log_probs
        assert len(log_probs) == n_tokens - 1
        assert math.exp(-sum(log_probs) / n_tokens) == pytest.approx(record["ppl"], rel=1e-4)
