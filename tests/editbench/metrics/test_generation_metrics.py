import math

import pytest

from editbench.errors import EditbenchError
from editbench.metrics.generation import (
    GenerationEntropy,
    ReferenceScore,
    TextSimilarity,
    ngram_entropy,
    weighted_entropy,
)
from editbench.models.answering import answer_questions
from editbench.models.loading import load_model
from editbench.plugins import PluginManager
from editbench.questions import Generate, GenerateAnswer
from editbench.requests import EditCase, EditRequest


def case(*, prompts: tuple[str, ...] = ("Ana",), references: tuple[str, ...] = ()) -> EditCase:
    request = EditRequest("7", "Ana", "{} is a", "poet")
    return EditCase(request, generation_prompts=prompts, reference_texts=references)


def written(*texts: str) -> dict[Generate, GenerateAnswer]:
    """Answers to prompts that are the texts' first words."""
    return {Generate(text.split()[0], 100): GenerateAnswer(text) for text in texts}


class TestGenerationEntropy:
    def test_entropies_worked_by_hand(self) -> None:
        words = ["a", "b", "a", "b", "c"]
        # Bigrams ab twice, ba, bc: 1/2 · 1 + 2 · 1/4 · 2 bits. Trigrams aba, bab, abc: log₂ 3 bits.
        assert ngram_entropy(words, 2) == pytest.approx(1.5)
        assert ngram_entropy(words, 3) == pytest.approx(math.log2(3))
        # Half of Eqn 27.
        assert weighted_entropy(words) == pytest.approx((2 / 3 * 1.5 + 4 / 3 * math.log2(3)) / 2)

    def test_repetition_and_too_few_words_have_none(self) -> None:
        for words in ([], ["a"], ["a", "b"], ["a"] * 9):
            value = weighted_entropy(words)
            assert value == 0
            assert math.copysign(1, value) == 1

    def test_a_case_is_the_mean_of_its_texts_times_100(self) -> None:
        # "x y" has one bigram and no trigram: 0. Of 4 different words: log₂ 3 and log₂ 2 bits.
        answers = written("x y", "Ana sings well.")
        value = 100 * (1 / 3 * math.log2(3) + 2 / 3) / 2
        judged = case(prompts=("x", "Ana"))
        assert GenerationEntropy().values(judged, answers) == {
            "generation_entropy": pytest.approx(value)
        }

    def test_each_prompt_is_written_from_once(self) -> None:
        judged = case(prompts=("Ana", "Bo", "Ana"))
        assert GenerationEntropy().questions(judged) == (Generate("Ana", 100), Generate("Bo", 100))
        answers = written("Ana Ana Ana", "Bo sat down.")
        once = case(prompts=("Ana", "Bo"))
        assert GenerationEntropy().values(judged, answers) == GenerationEntropy().values(
            once, answers
        )

    def test_without_prompts_there_is_none(self) -> None:
        assert GenerationEntropy().questions(case(prompts=())) == ()
        assert GenerationEntropy().values(case(prompts=()), {}) == {}


class TestReferenceScore:
    def test_cosine_worked_by_hand(self) -> None:
        # Of 3 texts, 'poet' is in 3, 'verse' in 1; 'a' is too short to be a word, 'judge' unknown.
        similarity = TextSimilarity(["a poet", "Poet. Poet!", "verse of a poet"])
        poet, verse = math.log(4 / 4) + 1, math.log(4 / 2) + 1
        # (2 · poet, verse) against (poet, verse); texts are joined, and case does not matter.
        expected = (2 * poet * poet + verse * verse) / (
            math.hypot(2 * poet, verse) * math.hypot(poet, verse)
        )
        found = similarity.compare(["a POET judge", "poet verse"], ("poet", "a verse"))
        assert found == pytest.approx(expected)

    def test_from_nothing_shared_to_all_shared(self) -> None:
        similarity = TextSimilarity(["poet verse", "judge court"])
        assert similarity.compare(["poet verse"], ("judge court",)) == 0
        assert similarity.compare(["thief"], ("judge court",)) == 0
        assert similarity.compare(["court", "judge"], ("judge court",)) == pytest.approx(1)
        assert similarity.compare(["court", "judge"], ("judge court",)) <= 1

    def test_a_case_is_one_cosine_times_100(self) -> None:
        judged = case(prompts=("Ana", "Bo"), references=("Cy writes verse", "Di is a poet"))
        other = case(references=("Ed sits in court",))
        answers = written("Ana writes verse", "Bo is a judge")
        metric = ReferenceScore().fitted([judged, other])
        similarity = TextSimilarity([*judged.reference_texts, *other.reference_texts])
        cosine = similarity.compare(["Ana writes verse Bo is a judge"], judged.reference_texts)
        assert 0 < cosine < 1
        assert metric.values(judged, answers) == {"reference_score": pytest.approx(100 * cosine)}
        assert metric.questions(judged) == tuple(answers)

    def test_words_are_counted_in_distinct_texts(self) -> None:
        first = case(references=("Cy writes verse", "Di is a poet", "verse is her trade"))
        second = case(references=("Di is a poet",))
        answers = written("Ana writes what is verse")
        once = ReferenceScore().fitted([first])
        again = ReferenceScore().fitted([first, second, first])
        assert once.values(first, answers) == again.values(first, answers)
        fewer = ReferenceScore().fitted([second])
        assert fewer.values(first, answers) != once.values(first, answers)

    @pytest.mark.parametrize(
        "lacking", [case(prompts=(), references=("Di is a poet",)), case(references=())]
    )
    def test_without_prompts_or_references_there_is_none(self, lacking: EditCase) -> None:
        metric = ReferenceScore().fitted([lacking])
        assert metric.questions(lacking) == ()
        assert metric.values(lacking, {}) == {}

    def test_must_be_fitted(self) -> None:
        with pytest.raises(EditbenchError, match="does not know the dataset's words"):
            ReferenceScore().values(case(references=("verse",)), written("Ana"))


def test_values_follow_the_seed_and_neither_the_order_nor_the_batches(tmp_path) -> None:
    plugins = PluginManager()
    model = load_model("atlas", specs=plugins.models(), device="cpu")
    dataset = plugins.get_dataset("atlas")(None, tmp_path)
    cases = dataset.cases()[:4]
    metrics = [GenerationEntropy(), ReferenceScore().fitted(dataset.cases())]
    questions = [question for each in cases for question in metrics[0].questions(each)]

    def measure(asked: list[Generate], seed: int, token_budget: int) -> list[dict[str, float]]:
        answers = answer_questions(model, asked, seed=seed, token_budget=token_budget)
        return [metric.values(each, answers) for each in cases for metric in metrics]

    expected = measure(questions, 0, 4096)
    assert measure(questions, 0, 4096) == expected
    assert measure(questions[::-1], 0, 4096) == expected
    alone = {}
    for question in questions:
        alone.update(answer_questions(model, [question], seed=0, token_budget=1))
    assert [metric.values(each, alone) for each in cases for metric in metrics] == expected
    other = measure(questions, 1, 4096)
    assert all(ours != theirs for ours, theirs in zip(expected, other, strict=True))
