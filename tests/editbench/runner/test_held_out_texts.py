"""Texts that no case is about are read before and after."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.editbench.runner.toys import Length, Toy, make_grid, random_update

from editbench.errors import ConfigError
from editbench.metrics.generation import ReferenceScore
from editbench.metrics.perplexity import Perplexity
from editbench.metrics.probes import Success
from editbench.models.answering import answer_questions
from editbench.questions import Read
from editbench.results.frame import load_rows
from editbench.results.report import summarize
from editbench.runner import has_questions, run_grid


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
