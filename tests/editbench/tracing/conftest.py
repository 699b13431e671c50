"""Prompts to trace, and settings small enough to trace them one cell at a time."""

from collections.abc import Callable

import numpy as np
import pytest

from editbench.models.editable import EditableModel
from editbench.testing import tiny_model
from editbench.tracing.facts import KnownFact
from editbench.tracing.prompts import prompt_of
from editbench.tracing.settings import TraceSettings
from editbench.tracing.traces import PromptTrace, TracedPrompt


def make_fact_about(subject: str, prompt: str, fact_object: str = "?") -> KnownFact:
    """A fact of which a template and the subject make the prompt."""
    start = prompt.index("{}")
    return KnownFact(
        f"{subject}/{prompt}", subject, prompt.replace("{}", subject), start, fact_object
    )


@pytest.fixture(scope="session")
def make_fact() -> Callable[..., KnownFact]:
    return make_fact_about


@pytest.fixture(scope="session")
def make_prompt() -> Callable[..., TracedPrompt]:
    """A prompt from a template and a subject, with the model's own answer."""

    def make(model: EditableModel, subject: str, prompt: str) -> TracedPrompt:
        return prompt_of(model, make_fact_about(subject, prompt))

    return make


@pytest.fixture(scope="session")
def tiny() -> EditableModel:
    return tiny_model()


@pytest.fixture(scope="session")
def tiny_facts(tiny: EditableModel) -> list[KnownFact]:
    """Eight facts; the tiny model predicts every other one, since its own answer is the object."""
    names = ("Ana Lund", "Boris Marek", "Carmen Novak", "Dmitri Okoro")
    facts = []
    for index, name in enumerate(names):
        for template in ("{} works as a", "Everybody knows that {} is a"):
            prompt = prompt_of(tiny, make_fact_about(name, template))
            is_known = len(facts) % 2 == 0
            facts.append(
                KnownFact(
                    f"{index}/{template}",
                    name,
                    prompt.fact.prompt,
                    prompt.fact.subject_start,
                    prompt.answer_text.strip() if is_known else "Zanzibar",
                )
            )
    return facts


@pytest.fixture(scope="session")
def settings() -> TraceSettings:
    return TraceSettings(noise_level=0.5, n_samples=3, window=2, noise_source="prompt", seed=0)


@pytest.fixture(scope="session")
def make_trace() -> Callable[..., PromptTrace]:
    """A trace made by hand: the scores at the last subject token, zero effect elsewhere."""

    def make(
        hidden: list[float],
        severed_mlp: list[float],
        *,
        low: float = 0.1,
        subject: range = range(1, 3),
        n_tokens: int = 5,
    ) -> PromptTrace:
        prompt = TracedPrompt(
            fact=KnownFact("0", "s", "s is", 0, "o"),
            token_ids=tuple(range(n_tokens)),
            subject=subject,
            answer=0,
            texts=tuple("abcdefgh"[:n_tokens]),
            answer_text="o",
        )
        scores = np.full((n_tokens, len(hidden)), low)
        scores[subject[-1]] = np.array(hidden) + low
        return PromptTrace(
            prompt,
            high_score=0.9,
            low_score=low,
            scores={"hidden": scores, "severed_mlp": np.array(severed_mlp) + low},
        )

    return make
