"""Which facts the unedited model knows: what an experiment may be limited to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from editbench.models.editable import EditableModel
from editbench.questions import Score, ScoreAnswer
from editbench.requests import EditCase
from editbench.runner.unedited import Questionnaire

_N_TOGETHER = 512  # cases that are asked at once


@dataclass
class KnowledgeFilter:
    """Leaves cases whose facts the unedited model knows, or those whose facts it does not.

    A fact is known if the model, unedited, says after the request's prompt what is thought to be so
    before the edit: every token of the true object, or of the new one where the data name no true
    object, is the likeliest at its place (teacher forcing).

    Attributes:
        model: The model.
        known: Whether known facts are wanted, or unknown ones.
        cache: Where answers are kept.
        n_asked: How many facts it has been asked.
        n_known: How many of these it knew.
    """

    model: EditableModel
    known: bool
    cache: Path | None
    n_asked: int = 0
    n_known: int = 0

    def choose(self, cases: Sequence[EditCase], n_wanted: int) -> list[EditCase]:
        """The first `n_wanted` cases that are wanted; no more are asked than that takes."""
        chosen: list[EditCase] = []
        for start in range(0, len(cases), _N_TOGETHER):
            some = cases[start : start + _N_TOGETHER]
            for case, is_known in zip(some, self._ask(some), strict=True):
                if len(chosen) == n_wanted:
                    return chosen
                self.n_asked += 1
                self.n_known += is_known
                if is_known == self.known:
                    chosen.append(case)
        return chosen

    def _ask(self, cases: Sequence[EditCase]) -> list[bool]:
        questions = list(map(_question_of, cases))
        answers = Questionnaire(None, tuple(dict.fromkeys(questions))).ask(
            self.model, cache=self.cache, token_budget=None, on_progress=lambda done, of: None
        )
        return [all(cast(ScoreAnswer, answers[question]).argmax) for question in questions]


def _question_of(case: EditCase) -> Score:
    request = case.request
    return Score(request.text, case.target_true or request.target, request.joiner, request.chat)
