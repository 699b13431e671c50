import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from editbench.errors import ConfigError
from editbench.models.editable import EditableModel
from editbench.tracing.facts import KnownFact
from editbench.tracing.noise import draw_noise, measure_spread
from editbench.tracing.runs import add_noise
from editbench.tracing.settings import (
    TraceSettings,
    default_window,
    parse_noise,
    window_around,
)
from editbench.tracing.traces import TracedPrompt

MakePrompt = Callable[[EditableModel, str, str], TracedPrompt]


def test_the_spread_is_the_unbiased_one_of_all_subjects_tokens(
    tiny: EditableModel, tiny_facts: list[KnownFact]
) -> None:
    table = tiny.model.get_input_embeddings().weight
    rows = [table[tiny.tokens.encode(fact.subject)] for fact in tiny_facts]
    expected = torch.cat(rows).double().std()
    assert measure_spread(tiny, tiny_facts) == pytest.approx(float(expected), rel=1e-9)


def test_what_stands_before_every_text_is_no_subject_s(family_model: EditableModel) -> None:
    """The families' tokenizer begins every text with a token of its own."""
    fact = KnownFact("0", "Q", "Q is", 0, "?")
    (own,) = set(family_model.tokens.encode("Q")[1:])
    with torch.no_grad():
        vector = family_model.model.get_input_embeddings()(torch.tensor([[own]])).double()
    assert measure_spread(family_model, [fact]) == pytest.approx(float(vector.std()), rel=1e-6)


def test_noise_is_the_prompt_s_own(
    tiny: EditableModel, make_prompt: MakePrompt, settings: TraceSettings
) -> None:
    one, other = (make_prompt(tiny, name, "{} works as a") for name in ("Ana Lund", "Boris Marek"))
    noise = draw_noise(tiny, one, settings)
    assert noise.shape == (3, len(one.subject), 24)
    assert noise.dtype == torch.float64
    assert torch.equal(noise, draw_noise(tiny, one, settings))
    assert not torch.equal(noise[:, 0], draw_noise(tiny, other, settings)[:, 0])
    reseeded = settings.model_copy(update={"seed": 1})
    assert not torch.equal(noise, draw_noise(tiny, one, reseeded))
    assert float(noise.std()) == pytest.approx(settings.noise_level, rel=0.2)


def test_the_reference_draws_the_same_for_every_prompt(
    tiny: EditableModel, make_prompt: MakePrompt, settings: TraceSettings
) -> None:
    as_reference = settings.model_copy(update={"noise_source": "reference", "noise_level": 2.0})
    prompt = make_prompt(tiny, "Ana Lund", "{} works as a")
    expected = 2.0 * np.random.RandomState(1).randn(3, len(prompt.subject), 24)
    for seed in (0, 1):
        found = draw_noise(tiny, prompt, as_reference.model_copy(update={"seed": seed}))
        np.testing.assert_array_equal(found.numpy(), expected)


def test_only_the_subject_of_the_copies_is_blurred(
    tiny: EditableModel, make_prompt: MakePrompt, settings: TraceSettings
) -> None:
    prompt = make_prompt(tiny, "Ana Lund", "Everybody knows that {} is a")
    clean = torch.zeros(4, len(prompt.token_ids), 24)
    blurred = add_noise(clean, prompt, draw_noise(tiny, prompt, settings))
    moved = blurred.ne(0).all(dim=2)
    assert not clean.any()
    assert not moved[0].any()
    for row in moved[1:]:
        assert row.nonzero()[:, 0].tolist() == list(prompt.subject)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3s", (3.0, True)), ("0.1", (0.1, False)), (" 2.5 s ", (2.5, True)), ("1e-2", (0.01, False))],
)
def test_noise_levels(text: str, expected: tuple[float, bool]) -> None:
    assert parse_noise(text) == expected


@pytest.mark.parametrize("text", ["", "s", "0", "-1", "3t", "nan", "inf", "1.2.3", "0s"])
def test_what_is_no_noise_level(text: str) -> None:
    with pytest.raises(ConfigError, match="--noise: got"):
        parse_noise(text)


@pytest.mark.parametrize(
    ("layer", "width", "n_layers", "expected"),
    [
        (20, 10, 48, (15, 24)),
        (0, 10, 48, (0, 4)),
        (47, 10, 48, (42, 47)),
        (3, 4, 6, (1, 4)),
        (2, 3, 6, (1, 3)),
        (2, 1, 6, (2, 2)),
    ],
)
def test_windows(layer: int, width: int, n_layers: int, expected: tuple[int, int]) -> None:
    assert window_around(layer, width, n_layers) == expected


@pytest.mark.parametrize(("n_layers", "expected"), [(6, 3), (12, 5), (28, 10), (48, 10)])
def test_default_windows(n_layers: int, expected: int) -> None:
    assert default_window(n_layers) == expected


def test_settings_refuse_what_is_no_noise() -> None:
    with pytest.raises(ValueError, match="finite"):
        TraceSettings(noise_level=math.inf, n_samples=1, window=1, noise_source="prompt", seed=0)
