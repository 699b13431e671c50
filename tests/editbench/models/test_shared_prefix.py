"""What many questions begin with is run once, and changes no answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editbench.costs.answers import estimate_answers
from editbench.editors.base import Resources
from editbench.editors.prompting import InContext, PromptingConfig
from editbench.models import memory_budget, prefix_groups
from editbench.models.answering import answer_questions
from editbench.models.continuing import find_continuing
from editbench.models.editable import EditableModel
from editbench.models.generation import generate_texts
from editbench.models.prefix_groups import group_by_prefix
from editbench.models.shared_prefix import can_share
from editbench.questions import Diverge, Generate, Question, Score, Write
from editbench.requests import EditRequest
from editbench.testing import tiny_model

FACTS = "In that year the council agreed to meet again. "
ENDS = ["Zoë plays", "北京 is", "The mother tongue of Zoë is", "The mill", "Q", "The winter of"]
PROMPTS = [f"{FACTS}{end}" for end in ENDS]
SCORES = [Score(prompt, said) for prompt in PROMPTS for said in ("the old mill", "the", "中国")]
WRITES = [Write(prompt, 6) for prompt in PROMPTS]
UNSHARED = {"mistral_sliding", "gemma2", "gemma3", "bloom", "mpt", "gpt_neo"}


@contextmanager
def recording(model: EditableModel) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of what runs through the embedding within the block."""
    find_continuing(model)
    shapes: list[tuple[int, ...]] = []
    embedding = model.model.get_submodule(model.architecture.embedding)
    handle = embedding.register_forward_hook(
        lambda module, args, output: shapes.append(tuple(args[0].shape))
    )
    try:
        yield shapes
    finally:
        handle.remove()


def ask(model: EditableModel, questions: Sequence[Question], token_budget: int = 60):
    return answer_questions(model, questions, seed=0, token_budget=token_budget)


def never_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_groups, "can_share", lambda model: False)


def count_facts(model: EditableModel) -> int:
    """How many tokens all prompts begin with."""
    together = zip(*map(model.tokens.encode, PROMPTS), strict=False)
    return next(n for n, tokens in enumerate(together) if len(set(tokens)) > 1)


def test_scores_and_texts_are_those_of_whole_rows_on_every_family(
    family_model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert can_share(family_model) == (family_model.name not in UNSHARED)
    n_facts = count_facts(family_model)
    with recording(family_model) as shapes:
        found = ask(family_model, [*SCORES, *WRITES])
        forced = ask(family_model, SCORES)
    assert shapes.count((1, n_facts)) == 2 * can_share(family_model)
    never_sharing(monkeypatch)
    with recording(family_model) as whole:
        expected = ask(family_model, [*SCORES, *WRITES])
    assert (1, n_facts) not in whole
    for score in SCORES:
        for answer in (found[score], forced[score]):
            assert answer.argmax == expected[score].argmax
            assert answer.log_probs == pytest.approx(expected[score].log_probs, abs=2e-4)
    assert [found[each].text for each in WRITES] == [expected[each].text for each in WRITES]


def test_sampled_texts_are_those_of_whole_rows_on_every_family(
    family_model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_tokens = max(len(family_model.tokens.encode(prompt)) for prompt in PROMPTS) + 5
    questions = [Generate(prompt, n_tokens) for prompt in PROMPTS]

    def write() -> list[str]:
        with torch.no_grad():
            found = generate_texts(family_model, questions, 0, 60, lambda n_new: None, top_k=1)
        return [found[each].text for each in questions]

    with recording(family_model) as shapes:
        found = write()
    assert ((1, count_facts(family_model)) in shapes) == can_share(family_model)
    never_sharing(monkeypatch)
    assert write() == found


def test_copies_of_what_is_shared_are_bounded(
    stories: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [*SCORES, *WRITES, *(Generate(prompt, 40) for prompt in PROMPTS)]
    expected = ask(stories, questions, 10_000)
    n_most = 4 * max(len(stories.tokens.encode(prompt)) + 10 for prompt in PROMPTS)
    monkeypatch.setattr(memory_budget, "_COPIED_BYTES", n_most * stories.size.n_copied_bytes)
    monkeypatch.setattr(prefix_groups, "_COST", 1)
    with recording(stories) as shapes:
        found = ask(stories, questions, 10_000)
    assert max(n_rows for n_rows, _ in shapes) <= 4
    for question, answer in found.items():
        if isinstance(question, Score):
            assert answer.log_probs == pytest.approx(expected[question].log_probs, abs=2e-4)
        else:
            assert answer == expected[question]


def test_a_question_within_what_others_begin_with_is_read_there(
    stories: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [*SCORES, Score("In that year", "the council agreed to meet again.")]
    found = ask(stories, questions)
    never_sharing(monkeypatch)
    expected = ask(stories, questions)
    for each in questions:
        assert found[each].log_probs == pytest.approx(expected[each].log_probs, abs=2e-4)


@pytest.fixture(scope="module")
def prompted():
    model = tiny_model()
    requests = [EditRequest(str(n), f"Ana {n}", "{} works as a", "poet") for n in range(6)]
    editor = InContext(PromptingConfig())
    return model, editor, requests, editor.edit(model, requests, Resources(seed=0))


def test_facts_in_context_run_once_and_so_they_are_planned(prompted, monkeypatch) -> None:
    model, editor, requests, edit = prompted
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", None)  # no text ends soon
    questions = [
        *(Score(f"{name} is a", job) for name in "ABCDEFGH" for job in ("pilot", "poet")),
        *(Write(f"{name} is a", 5) for name in "ABCDEFGH"),
        *(Generate(f"{name} met", 12) for name in "ABCDEFGH"),
    ]
    planned = estimate_answers(model, questions, 200, preface=editor.preface(requests))
    with edit.applied(model), recording(model) as shapes:
        found = ask(model, questions, 200)
    n_facts = max(width for _, width in shapes)
    assert shapes.count((1, n_facts)) == 2  # for scores with texts, and for sampled texts
    assert sum(stage.n_tokens for stage in planned) == sum(n * width for n, width in shapes)
    never_sharing(monkeypatch)
    whole = estimate_answers(model, questions, 200, preface=editor.preface(requests))
    assert sum(stage.n_tokens for stage in planned) < 0.5 * sum(each.n_tokens for each in whole)
    with edit.applied(model):
        expected = ask(model, questions, 200)
    for question, answer in found.items():
        if isinstance(question, Score):
            assert answer.log_probs == pytest.approx(expected[question].log_probs, abs=2e-4)
        else:
            assert answer == expected[question]


def test_divergence_shares_what_the_edited_model_reads(prompted, monkeypatch) -> None:
    model, _, _, edit = prompted
    questions = [Diverge(f"{name} works as") for name in "ABCDEFGH"]
    with edit.applied(model):
        with recording(model) as shapes:
            found = ask(model, questions, 200)
        n_facts = max(width for _, width in shapes)
        assert shapes.count((1, n_facts)) == 1
        never_sharing(monkeypatch)
        expected = ask(model, questions, 200)
    for each in questions:
        assert found[each].nats == pytest.approx(expected[each].nats, rel=1e-3, abs=1e-6)
        assert found[each].nats[0] > 0


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 12), st.lists(st.integers(0, 1), max_size=12)), max_size=14
    ),
    budget=st.integers(1, 40),
)
def test_groups_divide_rows_and_save_what_they_can(rows, budget) -> None:
    """Against every way to choose a single group."""
    model = tiny_model_once()
    sequences = [(7,) * n + tuple(rest) for n, rest in rows]
    groups = list(group_by_prefix(model, range(len(rows)), sequences.__getitem__, budget))
    assert sorted(row for group in groups for row in group.rows) == list(range(len(rows)))
    assert all(group.prefix for group in groups[:-1])
    shared = [group for group in groups if group.prefix]
    saved = [len(group.prefix) * (len(group.rows) - 1) - budget for group in shared]
    assert all(each > 0 for each in saved)
    for group in shared:
        assert all(sequences[row][: len(group.prefix)] == group.prefix for row in group.rows)
    prefixes = {sequence[:n] for sequence in sequences for n in range(8, len(sequence) + 1)}
    for prefix in prefixes:
        n_rows = sum(sequence[: len(prefix)] == prefix for sequence in sequences)
        assert sum(saved) >= len(prefix) * (n_rows - 1) - budget


_models: list[EditableModel] = []


def tiny_model_once() -> EditableModel:
    """Hypothesis takes no fixture that is made for each function."""
    if not _models:
        _models.append(tiny_model())
    return _models[0]
