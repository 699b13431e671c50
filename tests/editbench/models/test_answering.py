import json
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers as hf
from accelerate import dispatch_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from editbench.errors import RequestError
from editbench.models import memory_budget
from editbench.models.answering import answer_questions
from editbench.models.continuing import find_continuing
from editbench.models.editable import EditableModel
from editbench.models.generation import generate_texts
from editbench.models.loading import load_model
from editbench.questions import Generate, Question, Read, Score, ScoreAnswer

PROMPTS = [
    "The mother tongue of Danielle Darrieux is",
    "The mother tongue of Danielle",
    "Zoë plays",
    "北京 is the capital of",
    "In that year the council agreed to meet again in",
]
TARGETS = ["French", "the old mill", "the old mayor", "中国"]
SCORES = [Score(prompt, target) for prompt in PROMPTS for target in TARGETS]


def ask(model: EditableModel, *questions: Question, seed: int = 0, token_budget: int = 64):
    return answer_questions(model, questions, seed=seed, token_budget=token_budget)


@torch.no_grad()
def score_alone(model: EditableModel, question: Score) -> ScoreAnswer:
    """The plain way: one unpadded forward pass with logits everywhere."""
    prompt, targets = model.tokens.encode_continuation(question.prompt, question.continuation)
    logits = model.model(torch.tensor([[*prompt, *targets]])).logits[0]
    scores = logits.float().log_softmax(dim=1)[len(prompt) - 1 : -1]
    best = scores.argmax(dim=1).tolist()
    return ScoreAnswer(
        tuple(scores[place, token].item() for place, token in enumerate(targets)),
        tuple(token == winner for token, winner in zip(targets, best, strict=True)),
    )


@contextmanager
def count_forwards(model: EditableModel) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the inputs of all forward passes in the block, once the model is known."""
    find_continuing(model)
    shapes: list[tuple[int, ...]] = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    try:
        yield shapes
    finally:
        handle.remove()


def assert_close(answers: dict[Question, object], expected: dict[Score, ScoreAnswer]) -> None:
    for question, answer in expected.items():
        found = answers[question]
        assert found.log_probs == pytest.approx(answer.log_probs, abs=2e-4)
        assert found.argmax == answer.argmax


class TestScore:
    def test_equals_one_forward_a_question_on_every_family(
        self, family_model: EditableModel
    ) -> None:
        expected = {question: score_alone(family_model, question) for question in SCORES}
        assert_close(ask(family_model, *SCORES), expected)

    @pytest.mark.parametrize("kind", ["byte_level", "bos_eos", "unigram_always", "metaspace_bpe"])
    @pytest.mark.parametrize("padding_side", ["left", "right"])
    def test_tokenizer_and_its_padding_side_change_nothing(
        self, tokenizers, make_network, families, kind: str, padding_side: str
    ) -> None:
        tokenizer = hf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers[kind].backend_tokenizer, padding_side=padding_side
        )
        model = EditableModel(make_network(families["gpt2"][0]), tokenizer, name=kind)
        expected = {question: score_alone(model, question) for question in SCORES}
        assert_close(ask(model, *SCORES), expected)

    def test_on_trained_weights(self, stories: EditableModel) -> None:
        questions = [
            Score("Once upon a time, there was a little", "girl named Lily."),
            Score("Once upon a time, there was a little", "boy"),
            Score("Once upon", "a time"),
        ]
        expected = {question: score_alone(stories, question) for question in questions}
        answers = ask(stories, *questions)
        assert_close(answers, expected)
        assert all(answers[questions[2]].argmax)

    @pytest.mark.parametrize("token_budget", [1, 20, 10_000])
    def test_budget_changes_the_batches_and_not_the_answers(
        self, stories: EditableModel, token_budget: int
    ) -> None:
        with count_forwards(stories) as shapes:
            answers = ask(stories, *SCORES, token_budget=token_budget)
        assert_close(answers, ask(stories, *SCORES, token_budget=500))
        assert all(n_rows == 1 or n_rows * width <= token_budget for n_rows, width in shapes)
        if token_budget == 10_000:
            assert len(shapes) == 2  # prompts, and what branches off them

    def test_input_that_begins_another_one_has_no_row_of_its_own(
        self, tokenizers, make_network, families
    ) -> None:
        model = EditableModel(
            make_network(families["gpt2"][0]), tokenizers["byte_level"], name="tiny"
        )
        questions = [
            Score("The mother tongue of", "Zoë"),
            Score("The mother tongue of", "Zoë is"),
            Score("The mother tongue of", "the mill"),
            Score("The mother", "tongue of"),
            Score("In that", "year"),
        ]
        with count_forwards(model) as shapes:
            answers = ask(model, *questions, token_budget=10_000)
        # The prompt that three questions share, which "The mother tongue" begins, with two ways
        # on; and the last one.
        assert [n_rows for n_rows, _ in shapes] == [1, 2, 1]
        assert_close(answers, {question: score_alone(model, question) for question in questions})

    def test_large_vocabularies_are_read_in_slices(
        self, stories: EditableModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = ask(stories, *SCORES, token_budget=10_000)
        monkeypatch.setattr(memory_budget, "_LOGITS", 40 * stories.n_logits)
        monkeypatch.setattr(memory_budget, "_LOGITS_IN_FLOAT32", 3 * stories.n_logits)
        with count_forwards(stories) as shapes:
            answers = ask(stories, *SCORES, token_budget=10_000)
        assert len(shapes) > 1
        assert_close(answers, expected)

    def test_half_precision_is_normalized_in_float32(
        self, tokenizers, make_network, families
    ) -> None:
        network = make_network(families["llama"][0]).to(torch.bfloat16)
        model = EditableModel(network, tokenizers["bos"], name="half")
        question = Score("The mother tongue of", "Zoë")
        assert ask(model, question)[question].log_probs == pytest.approx(
            score_alone(model, question).log_probs, abs=1e-3
        )

    @pytest.mark.parametrize("golden", ["gpt2", "gptj"])
    def test_equals_the_reference(self, shared: Path, golden: str) -> None:
        folder = shared / "reference" / "golden" / golden
        model = load_model(str(folder / "model"), specs={}, device="cpu")
        requests = {r["case_id"]: r for r in json.loads((folder / "requests.json").read_text())}
        measured = []
        for record in json.loads((folder / "eval.json").read_text())["counterfact_pre"]:
            request = requests[record["case_id"]]
            wanted = request["requested_rewrite"]
            prompts = {
                "rewrite_prompts": [wanted["prompt"].format(wanted["subject"])],
                "paraphrase_prompts": request["paraphrase_prompts"],
                "neighborhood_prompts": request["neighborhood_prompts"],
            }
            for kind, texts in prompts.items():
                judged = "target_true" if kind == "neighborhood_prompts" else "target_new"
                for prompt, nll, correct in zip(
                    texts, record[f"{kind}_probs"], record[f"{kind}_correct"], strict=True
                ):
                    for target in ("target_new", "target_true"):
                        question = Score(prompt, wanted[target]["str"])
                        right = correct if target == judged else None
                        measured.append((question, nll[target], right))
        assert len(measured) > 150
        answers = ask(model, *[question for question, _, _ in measured], token_budget=512)
        for question, nll, right in measured:
            assert -answers[question].mean_log_prob == pytest.approx(nll, abs=1e-3)
            assert right is None or all(answers[question].argmax) == right

    def test_refuses_what_is_too_long_or_empty(self, tokenizers, make_network, families) -> None:
        model = EditableModel(
            make_network(families["gpt2"][0]), tokenizers["byte_level"], name="tiny"
        )
        with pytest.raises(RequestError, match=r"got \d+ tokens .*; expected at most 64"):
            ask(model, Score("mill " * 80, "old"))
        with pytest.raises(RequestError, match="no token is left"):
            ask(model, Score("mill", ""))

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        texts=st.lists(
            st.tuples(
                st.text("abZ ", min_size=1, max_size=6), st.text("abZ", min_size=1, max_size=4)
            ),
            min_size=1,
            max_size=12,
        ),
        token_budget=st.integers(1, 60),
    )
    def test_equals_one_forward_a_question_whatever_is_asked(
        self, stories: EditableModel, texts: Sequence[tuple[str, str]], token_budget: int
    ) -> None:
        questions = [Score(prompt, target) for prompt, target in texts]
        expected = {question: score_alone(stories, question) for question in questions}
        assert_close(ask(stories, *questions, token_budget=token_budget), expected)


class TestGenerate:
    def test_greedy_equals_a_loop_without_cache_or_padding_on_every_family(
        self, family_model: EditableModel
    ) -> None:
        questions = [Generate(prompt, 24) for prompt in PROMPTS[:3]]
        with torch.no_grad():
            answers = generate_texts(family_model, questions, 0, 1000, lambda n_new: None, top_k=1)
            for question in questions:
                ids = family_model.tokens.encode(question.prompt)
                while len(ids) < 24:
                    ids.append(int(family_model.model(torch.tensor([ids])).logits[0, -1].argmax()))
                assert answers[question].text == family_model.tokens.decode(ids)

    @pytest.mark.parametrize("golden", ["gpt2", "gptj"])
    def test_greedy_equals_the_reference(self, shared: Path, golden: str) -> None:
        folder = shared / "reference" / "golden" / golden
        model = load_model(str(folder / "model"), specs={}, device="cpu")
        for group in json.loads((folder / "generation_top1.json").read_text()):
            questions = [Generate(prompt, group["max_out_len"]) for prompt in group["prompts"]]
            with torch.no_grad():
                answers = generate_texts(
                    model, questions, 0, 1000, lambda n_new: None, top_k=group["top_k"]
                )
            texts = [unicodedata.normalize("NFKD", answers[each].text) for each in questions]
            assert texts == group["texts"]

    def test_follows_the_seed_and_nothing_else(self, stories: EditableModel) -> None:
        questions = [
            Generate(prompt, 40) for prompt in ("Once", "One day, Tom", "Lily and her dog")
        ]
        together = ask(stories, *questions, seed=3, token_budget=1000)
        assert together == ask(stories, *questions, seed=3, token_budget=1000)
        assert together != ask(stories, *questions, seed=4, token_budget=1000)
        for question in questions:
            assert ask(stories, question, seed=3)[question] == together[question]

    def test_leaves_the_global_random_state_alone(self, stories: EditableModel) -> None:
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = ask(stories, Generate("Once", 20))
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert ask(stories, Generate("Once", 20)) == first

    def test_counts_the_prompts_tokens_and_writes_past_the_end_of_sequence(
        self, tokenizers, make_network, families
    ) -> None:
        network = make_network(families["gpt_neox"][0])
        model = EditableModel(network, tokenizers["bos"], name="tiny")
        with torch.no_grad():  # every state now predicts the end of the sequence, or "a"
            network.lm_head.weight.zero_()
            network.lm_head.weight[2] = network.lm_head.weight[model.tokens.encode("a")[1]] = 1e-9
        text = ask(model, Generate("Zoë", 30))[Generate("Zoë", 30)].text
        n_prompt = len(model.tokens.encode("Zoë"))
        assert text.startswith("Zoë")
        assert "</s>" not in text
        assert 0 < text.count("a") <= 30 - n_prompt

    def test_longer_text_continues_the_shorter_one(self, stories: EditableModel) -> None:
        short, long = Generate("Once upon", 12), Generate("Once upon", 40)
        answers = ask(stories, short, long, token_budget=1000)
        assert answers[long].text.startswith(answers[short].text)
        assert len(stories.tokens.encode(answers[short].text)) <= 12

    def test_prompt_that_is_long_enough_is_returned(self, stories: EditableModel) -> None:
        question = Generate("Once upon a time there was", 4)
        assert ask(stories, question)[question].text == question.prompt

    def test_samples_the_five_best_by_their_probabilities(self, stories: EditableModel) -> None:
        prompt = "Once upon a time, there was a little"
        ids = stories.tokens.encode(prompt)
        with torch.no_grad():
            logits = stories.model(torch.tensor([ids])).logits[0, -1]
        values, tokens = logits.topk(5)
        questions = Generate(prompt, len(ids) + 1)
        drawn = [ask(stories, questions, seed=seed)[questions].text for seed in range(120)]
        texts = [stories.tokens.decode([*ids, token]) for token in tokens.tolist()]
        assert set(drawn) <= set(texts)
        for text, probability in zip(texts, values.softmax(dim=0).tolist(), strict=True):
            spread = (probability * (1 - probability) / 120) ** 0.5
            assert abs(drawn.count(text) / 120 - probability) < 4 * spread + 1e-9

    def test_refuses_what_is_too_long_or_empty(self, tokenizers, make_network, families) -> None:
        model = EditableModel(
            make_network(families["gpt2"][0]), tokenizers["byte_level"], name="tiny"
        )
        ends = r"too long, got 80 tokens in 'a{37}\.\.\.a{38}'; expected at most 64"
        with pytest.raises(RequestError, match=ends):
            ask(model, Generate("a" * 80, 100))
        with pytest.raises(RequestError, match="the prompt has no token"):
            ask(model, Generate("", 10))
        # Side by side they would need 60 - 1 + 50 places, more than the model has.
        questions = [Generate("a", 60), Generate("a" * 50, 60)]
        assert len(ask(model, *questions, token_budget=10_000)) == 2

    def test_texts_end_where_the_model_does_with_a_warning(
        self, tokenizers, make_network, families
    ) -> None:
        model = EditableModel(
            make_network(families["gpt2"][0]), tokenizers["byte_level"], name="tiny"
        )
        with pytest.warns(UserWarning, match="'tiny' takes 64 tokens.* got 100 wanted"):
            cut = ask(model, Generate("mill", 100))[Generate("mill", 100)]
        assert cut == ask(model, Generate("mill", 64))[Generate("mill", 64)]

    def test_small_models_write_many_texts_at_once(self, stories: EditableModel) -> None:
        questions = [Generate(f"Once upon {n}", 12) for n in range(40)]
        with count_forwards(stories) as shapes:
            ask(stories, *questions, token_budget=24)
        assert {n_rows for n_rows, _ in shapes} == {40}

    def test_large_models_write_as_many_as_the_budget_allows(
        self, stories: EditableModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        questions = [Generate(f"Once upon {n}", 12) for n in range(5)]
        expected = ask(stories, *questions)
        monkeypatch.setattr(memory_budget, "_TEXT_CACHE_BYTES", 0)
        with count_forwards(stories) as shapes:
            assert ask(stories, *questions, token_budget=24) == expected
        assert {n_rows for n_rows, _ in shapes} == {2, 1}


def read_plainly(model: EditableModel, text: str) -> ScoreAnswer:
    """Token by token, each after as many as the model takes of its own window."""
    opening = list(model.tokens.opening)
    ids = model.tokens.encode(text)[len(opening) :]
    size = len(ids) if model.max_positions is None else model.max_positions - len(opening)
    start = 0 if opening else 1
    log_probs, argmax = [], []
    for place in range(start, len(ids)):
        first = start + (place - start) // size * size
        before = [*opening, *ids[max(0, first - 1) : place]]
        with torch.no_grad():
            scores = model.model(torch.tensor([before])).logits[0, -1].float().log_softmax(dim=0)
        log_probs.append(scores[ids[place]].item())
        argmax.append(int(scores.argmax()) == ids[place])
    return ScoreAnswer(tuple(log_probs), tuple(argmax))


class TestRead:
    TEXTS = ("The mother tongue of Zoë is French.", "In that year the council met.", "北京")

    def test_every_token_given_all_before_it_on_every_family(
        self, family_model: EditableModel
    ) -> None:
        questions = [Read(text) for text in self.TEXTS]
        expected = {question: read_plainly(family_model, question.text) for question in questions}
        assert_close(ask(family_model, *questions), expected)

    @pytest.mark.parametrize("kind", ["byte_level", "bos_eos", "metaspace_bpe"])
    @pytest.mark.parametrize("n_times", [1, 8, 12])
    def test_long_texts_are_read_in_windows_and_nothing_twice(
        self, tokenizers, make_network, families, kind: str, n_times: int
    ) -> None:
        model = EditableModel(make_network(families["gpt2"][0]), tokenizers[kind], name=kind)
        text = " ".join(self.TEXTS[:2] * n_times)
        questions = [Read(text), Read(text[:20]), Score(text[:20], "French")]
        answers = ask(model, *questions, token_budget=100)
        assert_close(
            answers, {question: read_plainly(model, question.text) for question in questions[:2]}
        )
        n_tokens = len(model.tokens.encode(text))
        assert len(answers[questions[0]].log_probs) == n_tokens - 1
        if n_times > 1:
            assert n_tokens > model.max_positions

    def test_a_token_that_nothing_comes_before_is_no_text(
        self, tokenizers, make_network, families
    ) -> None:
        network = make_network(families["gpt2"][0])
        model = EditableModel(network, tokenizers["byte_level"], name="tiny")
        for text in ("", "a"):
            with pytest.raises(RequestError, match="nothing is left to predict"):
                ask(model, Read(text))
        with_opening = EditableModel(network, tokenizers["bos"], name="tiny")
        assert len(ask(with_opening, Read("a"))[Read("a")].log_probs) == 1

    def test_progress_counts_texts_not_windows(self, tokenizers, make_network, families) -> None:
        model = EditableModel(
            make_network(families["gpt2"][0]), tokenizers["byte_level"], name="tiny"
        )
        seen: list[tuple[int, int]] = []
        answer_questions(
            model,
            [Read("mill " * 200), Read("old mill"), Score("mill", "old")],
            seed=0,
            token_budget=64,
            on_progress=lambda done, total: seen.append((done, total)),
        )
        assert seen[-1] == (3, 3)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)


class TestAnswerQuestions:
    def test_answers_each_question_once_in_order_with_progress(
        self, stories: EditableModel
    ) -> None:
        questions = [Generate("Once", 10), *SCORES[:3], Generate("Once", 10), SCORES[0]]
        seen: list[tuple[int, int]] = []
        answers = answer_questions(
            stories,
            iter(questions),
            seed=0,
            token_budget=30,
            on_progress=lambda done, total: seen.append((done, total)),
        )
        assert list(answers) == questions[:4]
        assert seen[-1] == (4, 4)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)

    def test_no_questions(self, stories: EditableModel) -> None:
        assert ask(stories) == {}

    @pytest.mark.parametrize("place", ["cpu", "disk"])
    def test_works_on_an_offloaded_model(
        self, tokenizers, make_network, families, tmp_path: Path, place: str
    ) -> None:
        def build() -> EditableModel:
            return EditableModel(make_network(families["llama"][0]), tokenizers["bos"], name="tiny")

        questions = [*SCORES[:5], Generate("Zoë plays", 20)]
        expected = ask(build(), *questions)
        moved = build()
        dispatch_model(
            moved.model,
            {"model": place, "lm_head": place},
            main_device="cpu",
            offload_dir=tmp_path,
            force_hooks=True,
        )
        answers = ask(moved, *questions)
        assert answers[questions[-1]] == expected[questions[-1]]
        assert_close(answers, {question: expected[question] for question in SCORES[:5]})
