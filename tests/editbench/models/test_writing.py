"""What a model writes by itself is what a loop without cache, batches or padding writes."""

import pytest
import torch

from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.models.writing import first_sentence
from editbench.questions import Score, Write

PROMPTS = [
    "The mother tongue of Danielle Darrieux is",
    "The mother tongue of Danielle",
    "Zoë plays",
    "北京 is the capital of",
    "In that year the council agreed to meet again in",
]


@torch.no_grad()
def write_alone(model: EditableModel, question: Write) -> str:
    prompt = model.tokens.encode(question.prompt)
    ids = list(prompt)
    end = model.model.generation_config.eos_token_id
    for _ in range(question.n_tokens):
        token = int(model.model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == end:
            break
        ids.append(token)
    text = model.tokens.decode(ids)[len(model.tokens.decode(prompt)) :].rstrip("\ufffd")
    return (first_sentence(text) or text) if question.sentence else text


def ask(model: EditableModel, *questions: Score | Write, token_budget: int = 500):
    return answer_questions(model, questions, seed=0, token_budget=token_budget)


def test_equals_a_loop_on_every_family_beside_scores_and_alone(family_model):
    writes = [
        Write(prompt, n, sentence=sentence)
        for prompt in PROMPTS
        for n, sentence in ((9, False), (12, True))
    ]
    scores = [
        Score(prompt, said) for prompt in PROMPTS for said in ("French", "the old mill", "中")
    ]
    expected = {each: write_alone(family_model, each) for each in writes}
    alone = ask(family_model, *writes)
    assert {each: alone[each].text for each in writes} == expected
    together = ask(family_model, *scores, *writes, token_budget=64)
    assert {each: together[each].text for each in writes} == expected
    plain = ask(family_model, *scores)
    for score in scores:
        assert together[score].argmax == plain[score].argmax
        assert together[score].log_probs == pytest.approx(plain[score].log_probs, abs=2e-4)


def test_trained_model_ends_its_sentence_and_what_is_over_is_not_run_on(stories):
    questions = [Write(f"{start} there was a", 60, sentence=True) for start in ("Once", "One day")]
    widths = []
    handle = stories.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    try:
        answers = ask(stories, *questions)
    finally:
        handle.remove()
    texts = [answers[each].text for each in questions]
    assert texts == [write_alone(stories, each) for each in questions]
    assert all(text[-1] in ".!?" for text in texts)
    steps = [n_rows for n_rows, width in widths if width == 1]
    n_written = [len(stories.tokens.encode(text)) for text in texts]
    assert steps == sorted(steps, reverse=True)
    assert sum(steps) <= sum(n_written) + 2 * len(texts) < 2 * 60


def test_scores_and_texts_of_a_prompt_share_its_forward_pass(stories):
    prompt = "Once upon a time, there was a little"
    shapes = []
    handle = stories.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    try:
        ask(stories, Score(prompt, "girl"), Score(prompt, "boy"), Write(prompt, 4))
    finally:
        handle.remove()
    n_prompt = len(stories.tokens.encode(prompt))
    assert [width for _, width in shapes].count(n_prompt) == 1


def test_a_text_ends_where_the_model_takes_no_more(tokenizers, make_network, families):
    model = EditableModel(make_network(families["gpt2"][0]), tokenizers["byte_level"], name="tiny")
    prompt = "mill " * 10
    n_prompt = len(model.tokens.encode(prompt))
    model.model.generation_config.eos_token_id = None
    answer = ask(model, Write(prompt, 500))[Write(prompt, 500)]
    short = Write(prompt, model.max_positions - n_prompt)
    assert answer == ask(model, short)[short]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (" English. He", "English."),
        (" English.", None),  # more may follow at once, as in "English.com"
        (" Version 3.5 of it", None),
        (" St. Petersburg. It", "St. Petersburg."),
        (" Washington, D.C. and", None),
        (' "Hello!" he said', '"Hello!"'),
        ("\n\n Yes\nno", "Yes"),
        ("法国。他", "法国。"),
        (" well", None),
    ],
)
def test_first_sentence(text, sentence):
    assert first_sentence(text) == sentence
