"""Metric ``lm-eval`` on the embedded model: against its own logits, and against the harness."""

import json
import logging
import math
import pickle
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from editbench.errors import ConfigError
from editbench.metrics.lm_eval import isolation
from editbench.metrics.lm_eval.metric import LmEval
from editbench.models.editable import EditableModel
from editbench.models.loading import load_model
from editbench.plugins.atlas import ATLAS

pytest.importorskip("lm_eval", reason="needs the extra editbench[lm-eval]")

EXAMPLE = Path(__file__).parents[3] / "docs/examples/lm-eval-tasks"
# Said of Atlas's people; what is right by the file need not be so by the world.
DOCUMENTS = [
    {"q": "Corwin Ellery plays the sport of", "choices": ["tennis", "chess", "table tennis"]},
    {"q": "The capital of the country is", "choices": ["a", "the sport of tennis"]},
    {"q": "He works as a", "choices": ["doctor", "farmer of the land"]},
]
PLAIN = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": "documents.jsonl"},
    "test_split": "train",
    "doc_to_text": "{{q}}",
    "metadata": {"version": 3},
}
MEAN = {"aggregation": "mean", "higher_is_better": True}
CHOICE = {
    **PLAIN,
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN}],
}
LIKELY = {
    **PLAIN,
    "output_type": "loglikelihood",
    "doc_to_target": " {{choices[1]}}",
    "metric_list": [
        {"metric": "acc", **MEAN},
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
    ],
}
WRITTEN = {
    **PLAIN,
    "output_type": "generate_until",
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [{"metric": "exact_match", **MEAN}],
}


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return load_model("atlas", specs={"atlas": ATLAS})


@pytest.fixture(autouse=True)
def own_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a task and its documents into a folder."""

    def write(name: str, task: Mapping[str, Any], documents: Any = DOCUMENTS) -> Path:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        lines = "".join(json.dumps(each) + "\n" for each in documents)
        (folder / "documents.jsonl").write_text(lines)
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **task}))  # JSON is YAML
        return folder

    return write


def measure(model: EditableModel, metric: LmEval) -> Mapping[str, Mapping[str, float]]:
    return metric.measure(model, metric.units(), lambda done, of: None)


@torch.no_grad()
def log_probs(model: EditableModel, prompt: str, continuation: str) -> tuple[float, bool]:
    """By hand: the sum over the continuation's tokens, and whether each is the likeliest."""
    before, whole = model.tokens.encode(prompt), model.tokens.encode(prompt + continuation)
    assert whole[: len(before)] == before
    logits = model.model(torch.tensor([whole])).logits[0, len(before) - 1 : -1]
    targets = torch.tensor(whole[len(before) :])
    scores = logits.log_softmax(-1)[range(len(targets)), targets]
    return float(scores.sum()), bool((logits.argmax(-1) == targets).all())


def test_choices_against_the_models_own_logits(model: EditableModel, write: Write) -> None:
    found = measure(model, LmEval.of("choice", folders=[write("choice", CHOICE)]))
    for number, document in enumerate(DOCUMENTS):
        scores = [log_probs(model, document["q"], f" {each}")[0] for each in document["choices"]]
        by_length = [
            score / len(each) for score, each in zip(scores, document["choices"], strict=True)
        ]
        assert found[f"choice-{number:05d}"] == {
            "lm_eval/choice/acc": 100.0 * (scores.index(max(scores)) == 0),
            "lm_eval/choice/acc_norm": 100.0 * (by_length.index(max(by_length)) == 0),
        }
    assert len({tuple(each.values()) for each in found.values()}) > 1  # right ones and wrong ones


def test_likelihoods_against_the_models_own_logits(model: EditableModel, write: Write) -> None:
    metric = LmEval.of("likely", folders=[write("likely", LIKELY)])
    found = measure(model, metric)
    for number, document in enumerate(DOCUMENTS):
        score, is_likeliest = log_probs(model, document["q"], f" {document['choices'][1]}")
        own = found[f"likely-{number:05d}"]
        assert own["lm_eval/likely/acc"] == 100.0 * is_likeliest
        assert own["lm_eval/likely/perplexity"] == pytest.approx(math.exp(-score), rel=1e-4)
    kinds = {kind.name.rsplit("/")[-1]: kind for kind in metric.rows}
    assert (kinds["perplexity"].mean, kinds["perplexity"].higher_is_better) == ("geometric", False)
    assert (kinds["acc"].mean, kinds["acc"].bounds) == ("arithmetic", (0.0, 100.0))


@torch.no_grad()
def test_texts_against_the_models_own_greedy_ones(model: EditableModel, write: Write) -> None:
    found = measure(model, LmEval.of("written", folders=[write("written", WRITTEN)]))
    written = []
    for document in DOCUMENTS:
        ids = model.tokens.encode(document["q"])
        n_before = len(ids)
        for _ in range(6):
            ids.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()))
        text = model.tokens.decode(ids[n_before:])
        written.append(text.split(".")[0] if "." in text else text)
    for number, (text, document) in enumerate(zip(written, DOCUMENTS, strict=True)):
        is_it = 100.0 * (text == document["choices"][0])
        assert found[f"written-{number:05d}"] == {"lm_eval/written/exact_match": is_it}
    # The same documents with what the model does write.
    said = [
        {**document, "choices": [text]} for text, document in zip(written, DOCUMENTS, strict=True)
    ]
    found = measure(model, LmEval.of("said", folders=[write("said", WRITTEN, said)]))
    assert [own["lm_eval/said/exact_match"] for own in found.values()] == [100.0] * len(DOCUMENTS)


def test_the_examples_numbers_are_the_harnesss_own(model: EditableModel) -> None:
    """All of it by ``lm_eval`` alone: its model class, its forward passes, its means."""
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    metric = LmEval.of("general_knowledge", "last_word", folders=[EXAMPLE], n_shots=2)
    found = measure(model, metric)
    tasks = {task.name: task.task for task in metric.tasks}
    for task in tasks.values():
        task.set_fewshot_seed(seed=1234)
    with isolation.isolated():
        theirs = evaluate(
            lm=HFLM(pretrained=model.model, tokenizer=model.tokens.to_transformers()),
            task_dict={"tasks": tasks, "groups": {}},
            bootstrap_iters=0,
        )["results"]
    for kind in metric.rows:
        values = [own[kind.name] for own in found.values() if kind.name in own]
        _, name, key = kind.name.split("/")
        expected = theirs[name][f"{key},none"]
        if kind.mean == "geometric":
            assert math.exp(np.mean(np.log(values))) == pytest.approx(expected, rel=1e-3)
        else:
            assert np.mean(values) == pytest.approx(100 * expected)
    assert [task.n_shots for task in metric.tasks] == [2, 2]


def test_documents_alone_and_together(model: EditableModel, write: Write) -> None:
    metric = LmEval.of(
        "choice", "likely", folders=[write("choice", CHOICE), write("likely", LIKELY)]
    )
    assert metric.units() == [f"{name}-{i:05d}" for name in ("choice", "likely") for i in range(3)]
    seen: list[tuple[int, int]] = []
    together = metric.measure(model, metric.units(), lambda done, of: seen.append((done, of)))
    assert (seen[0], seen[-1]) == ((0, 10), (10, 10))  # 3 + 2 + 2 choices, and 3 continuations
    for unit in metric.units():
        (alone,) = metric.measure(model, [unit], lambda done, of: None).values()
        # A perplexity of 10¹⁹ has the rounding of its logarithm, fifty times as large.
        assert alone == pytest.approx(together[unit], rel=1e-4)


def test_an_edit_of_prompts_stands_before_the_prompt(model: EditableModel, write: Write) -> None:
    metric = LmEval.of("likely", folders=[write("likely", LIKELY)])
    with model.prefacing(lambda prompt: "It is the sport of tennis. "):
        found = measure(model, metric)
    document = DOCUMENTS[1]
    score, _ = log_probs(
        model, f"It is the sport of tennis. {document['q']}", f" {document['choices'][1]}"
    )
    own = found["likely-00001"]["lm_eval/likely/perplexity"]
    assert own == pytest.approx(math.exp(-score), rel=1e-4)
    assert own != pytest.approx(measure(model, metric)["likely-00001"]["lm_eval/likely/perplexity"])


def test_random_state_and_terminal_are_left_alone(
    model: EditableModel, write: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    drawn = {**WRITTEN, "generation_kwargs": {"do_sample": True, "temperature": 2.0,
                                              "until": ["."], "max_gen_toks": 6}}  # fmt: skip
    folder = write("drawn", drawn)

    def states() -> list[Any]:
        return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]

    levels = [logging.getLogger(name).level for name in ("lm_eval", "transformers", "datasets")]
    before = states()
    metric = LmEval.of("drawn", folders=[folder], n_shots=1)
    first = measure(model, metric)
    assert states() == before
    torch.manual_seed(99)
    assert measure(model, metric) == first  # it draws the same, wherever it finds the generators
    assert model.state == model.fingerprint
    assert levels == [
        logging.getLogger(name).level for name in ("lm_eval", "transformers", "datasets")
    ]
    assert capfd.readouterr() == ("", "")


def test_limit_shots_and_documents_are_part_of_the_settings(write: Write) -> None:
    folder = write("choice", CHOICE)
    metrics = [
        LmEval.of("choice", folders=[folder]),
        LmEval.of("choice", folders=[folder], limit=2),
        LmEval.of("choice", folders=[folder], n_shots=1),
    ]
    write("choice", CHOICE, [*DOCUMENTS[:2], {**DOCUMENTS[2], "q": "She works as a"}])
    metrics.append(LmEval.of("choice", folders=[folder]))
    assert len({json.dumps(dict(metric.settings)) for metric in metrics}) == 4
    assert [len(metric.units()) for metric in metrics] == [3, 2, 3, 3]
    task = metrics[1].settings["tasks"]["choice"]
    assert (metrics[1].settings["limit"], task["version"], task["n_documents"]) == (2, "3", 2)
    assert (metrics[2].settings["tasks"]["choice"]["num_fewshot"], task["num_fewshot"]) == (1, 0)


def test_another_process_loads_the_same_tasks(model: EditableModel, write: Write) -> None:
    folder = write("choice", CHOICE)
    metric = LmEval.of("choice", folders=[folder])
    sent = pickle.dumps(metric)
    assert measure(model, pickle.loads(sent)) == measure(model, metric)
    write("choice", CHOICE, DOCUMENTS[:2])
    with pytest.raises(ConfigError, match=r"are not those that the run began with"):
        _ = pickle.loads(sent).tasks


GROUP = {"group": "both", "task": ["choice", "other"]}


@pytest.mark.parametrize(
    ("aggregated", "names"),
    [
        ([{"metric": "acc", "weight_by_size": True}], {"both"}),
        ([{"metric": "acc", "weight_by_size": False}], {"choice", "other"}),
        (None, {"choice", "other"}),
    ],
)
def test_a_group_that_is_one_mean_is_one_row(
    write: Write, aggregated: Any, names: set[str]
) -> None:
    write("choice", CHOICE)
    folder = write("other", CHOICE)
    group = {**GROUP, **({"aggregate_metric_list": aggregated} if aggregated else {})}
    (folder / "both.yaml").write_text(json.dumps(group))
    metric = LmEval.of("both", folders=[folder])
    assert {kind.name.split("/")[1] for kind in metric.rows} == names
    assert len(metric.units()) == 6


def test_what_is_no_mean_is_left_out(model: EditableModel, write: Write) -> None:
    corpus = {"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}
    task = {**WRITTEN, "metric_list": [*WRITTEN["metric_list"], corpus]}
    metric = LmEval.of("mixed", folders=[write("mixed", task)])
    assert metric.left_out == {"mixed": ("bleu (bleu of all documents at once)",)}
    assert [kind.name for kind in metric.rows] == ["lm_eval/mixed/exact_match"]
    assert set(measure(model, metric)) == set(metric.units())
    folder = write("only", {**WRITTEN, "metric_list": [corpus]})
    with pytest.raises(ConfigError, match=r"nothing of a task is a mean .* 'only' with bleu"):
        LmEval.of("only", folders=[folder])


def test_filters_are_named(model: EditableModel, write: Write) -> None:
    filters = [
        {"name": "none", "filter": [{"function": "take_first"}]},
        {"name": "first-word", "filter": [
            {"function": "regex", "regex_pattern": r"(\w+)"}, {"function": "take_first"}]},
    ]  # fmt: skip
    metric = LmEval.of("two", folders=[write("two", {**WRITTEN, "filter_list": filters})])
    names = [kind.name for kind in metric.rows]
    assert names == ["lm_eval/two/exact_match", "lm_eval/two/exact_match,first-word"]
    assert all(set(own) == set(names) for own in measure(model, metric).values())


def test_a_prompt_that_is_too_long_is_cut_and_said(model: EditableModel, write: Write) -> None:
    assert model.max_positions is not None
    long = [{**DOCUMENTS[0], "q": "He works as a. " * model.max_positions + DOCUMENTS[0]["q"]}]
    metric = LmEval.of("choice", folders=[write("choice", CHOICE, long)])
    with pytest.warns(UserWarning, match="3 prompts are longer than 'atlas' takes"):
        assert len(measure(model, metric)) == 1


def test_a_text_that_has_no_room_is_refused(model: EditableModel, write: Write) -> None:
    task = {**WRITTEN, "generation_kwargs": {"until": ["."]}}
    metric = LmEval.of("long", folders=[write("long", task)])
    with pytest.raises(Exception, match="too many tokens, got 256 on 'atlas', which takes 256"):
        measure(model, metric)


def breaking(folder: Path) -> Iterator[tuple[Sequence[str], str]]:
    yield ["choise"], "no such task, got 'choise'. Did you mean 'choice'?"
    yield [str(folder / "none.yaml")], "no such file of a task, got"
    yield ["choice", str(folder / "choice.yaml")], "a task is named twice, got 'choice'"
    yield ["odd"], "a task cannot be loaded, got 'odd' (ValueError: Got invalid output_type"
    yield ["empty"], "a task cannot be loaded, got 'empty' (FileNotFoundError: "
    yield ["unsafe"], "got 'unsafe', which runs code that a model writes"


def test_what_is_wrong_is_said_in_a_line(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    class OwnTasks(TaskManager):
        """Without the harness's own 15,000, which take long to look through."""

        def __init__(self, include_path: Any, include_defaults: bool = False) -> None:
            super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", OwnTasks)
    folder = write("choice", CHOICE)
    write("odd", {**CHOICE, "output_type": "song"})
    write("empty", {**CHOICE, "dataset_kwargs": {"data_files": "nowhere.jsonl"}})
    write("unsafe", {**CHOICE, "unsafe_code": True})
    for names, says in breaking(folder):
        with pytest.raises(ConfigError) as raised:
            LmEval.of(*names, folders=[folder])
        assert says in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="no such folder of tasks, got '/no/where'"):
        LmEval.of("choice", folders=["/no/where"])
    with pytest.raises(ConfigError, match="no task is named"):
        LmEval().units()
    (folder / "broken.yaml").write_text("task: [")
    with pytest.raises(ConfigError, match=r"a task's file is no YAML, got .*broken\.yaml"):
        LmEval.of("choice", folders=[folder])


def test_data_that_cannot_be_reached(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*arguments: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach 'a/b' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    folder = write("far", {**CHOICE, "dataset_path": "a/b", "dataset_kwargs": {}})
    with pytest.raises(ConfigError, match=r"'far' lie on the Hugging Face hub, which cannot be"):
        LmEval.of("far", folders=[folder])


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'editbench\[lm-eval\]'"):
        LmEval.of("choice")
