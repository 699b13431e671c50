"""All cells together against one cell at a time, on every family of architectures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from editbench.models.editable import EditableModel
from editbench.tracing.noise import draw_noise
from editbench.tracing.plain import score_plainly
from editbench.tracing.routes import Route
from editbench.tracing.runs import run_clean_and_corrupted
from editbench.tracing.settings import TraceSettings, window_around
from editbench.tracing.tracer import Tracer
from editbench.tracing.traces import PromptTrace, TracedPrompt

MakePrompt = Callable[[EditableModel, str, str], TracedPrompt]

# The subject at the start, in the middle, at the end; of one token, and of parts of characters.
PROMPTS = [("Zoë", "{} is"), ("Q", "All of {} is"), ("北", "We {}")]


def trace_plainly(
    model: EditableModel, prompt: TracedPrompt, settings: TraceSettings
) -> dict[str, np.ndarray]:
    """Every cell on its own."""
    n_layers = model.architecture.n_layers
    noise = draw_noise(model, prompt, settings)
    runs = run_clean_and_corrupted(model, prompt, noise)
    scores: dict[str, np.ndarray] = {}
    for kind in settings.traced_kinds:
        is_severed = kind.startswith("severed")
        tokens = prompt.subject[-1:] if is_severed else range(len(prompt.token_ids))
        rows = []
        for token in tokens:
            for layer in range(n_layers):
                first, last = layer, layer
                if kind in ("mlp", "attention"):
                    first, last = window_around(layer, settings.window, n_layers)
                route = Route(kind, token, first, last)
                rows.append(score_plainly(model, prompt, noise, runs, route))
        found = np.array(rows).reshape(len(tokens), n_layers)
        scores[kind] = found[0] if is_severed else found
    return scores


def assert_same(trace: PromptTrace, plain: dict[str, np.ndarray]) -> None:
    assert trace.scores.keys() == plain.keys()
    for kind, expected in plain.items():
        np.testing.assert_allclose(trace.scores[kind], expected, rtol=1e-4, atol=1e-7)


def test_replay_equals_one_cell_at_a_time(
    family_model: EditableModel, make_prompt: MakePrompt, settings: TraceSettings
) -> None:
    tracer = Tracer(family_model, settings)
    for subject, template in PROMPTS:
        prompt = make_prompt(family_model, subject, template)
        trace = tracer.trace(prompt)
        assert_same(trace, trace_plainly(family_model, prompt, settings))
        moved = np.abs(trace.scores["hidden"] - trace.low_score).max()
        assert moved > 1e-3  # or nothing was compared
    # The head of one OPT sits behind a projection of its own, so that replay gives way.
    assert (tracer.replay_failure is None) == (family_model.name != "opt_post_norm")


@contextmanager
def tilted_where_replayed(model: EditableModel, n_rows: int) -> Iterator[None]:
    """Let the last block answer differently unless it runs on whole rows, so many of them."""

    def tilt(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: object) -> object:
        if len(args[0]) == n_rows:
            return None
        slope = torch.linspace(-2, 2, model.architecture.d_model)
        return (output[0] * slope, *output[1:]) if isinstance(output, tuple) else output * slope

    blocks = model.model.get_submodule(model.architecture.blocks)
    handle = blocks[-1].register_forward_hook(tilt)
    try:
        yield
    finally:
        handle.remove()


def test_a_replay_that_is_not_the_model_s_own_forward_gives_way(
    tiny: EditableModel, make_prompt: MakePrompt, settings: TraceSettings
) -> None:
    prompt = make_prompt(tiny, "Ana Lund", "{} is")
    tracer = Tracer(tiny, settings)
    with tilted_where_replayed(tiny, 1 + settings.n_samples):
        assert_same(tracer.trace(prompt), trace_plainly(tiny, prompt, settings))
    assert "differs from the model's own" in str(tracer.replay_failure)
    assert_same(tracer.trace(prompt), trace_plainly(tiny, prompt, settings))


def test_the_same_every_time_and_nothing_is_left_behind(
    tiny: EditableModel, make_prompt: MakePrompt, settings: TraceSettings
) -> None:
    prompts = [make_prompt(tiny, name, "{} works as a") for name in ("Ana Lund", "Boris Marek")]
    fingerprint, state = tiny.compute_fingerprint(), torch.get_rng_state()
    tracer = Tracer(tiny, settings)
    both = [tracer.trace(prompt) for prompt in prompts]
    # Neither what was traced before nor the order matters.
    again = Tracer(tiny, settings).trace(prompts[1])
    for kind, scores in both[1].scores.items():
        np.testing.assert_array_equal(scores, again.scores[kind])
    assert tiny.compute_fingerprint() == fingerprint
    assert torch.equal(torch.get_rng_state(), state)
    modules = tiny.model.modules()
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in modules)


def test_the_last_subject_token_alone(
    tiny: EditableModel, make_prompt: MakePrompt, settings: TraceSettings
) -> None:
    prompt = make_prompt(tiny, "Ana Lund", "Everybody knows that {} is a")
    whole = Tracer(tiny, settings).trace(prompt)
    alone = Tracer(tiny, settings).trace(prompt, only_last_subject=True)
    last = prompt.subject[-1]
    for kind, scores in alone.scores.items():
        if scores.ndim == 1:
            np.testing.assert_allclose(scores, whole.scores[kind], rtol=1e-5)
        else:
            np.testing.assert_allclose(scores[last], whole.scores[kind][last], rtol=1e-5)
            assert np.isnan(np.delete(scores, last, axis=0)).all()


def test_large_batches_are_cut(
    tiny: EditableModel,
    make_prompt: MakePrompt,
    settings: TraceSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt = make_prompt(tiny, "Ana Lund", "Everybody knows that {} is a")
    whole = Tracer(tiny, settings).trace(prompt)
    monkeypatch.setattr("editbench.models.memory_budget._CPU_TOKENS", 1)
    monkeypatch.setattr("editbench.tracing.replay._ENOUGH_WORK", 0)
    monkeypatch.setattr("editbench.models.memory_budget._LOGITS_IN_FLOAT32", 1)
    cut = Tracer(tiny, settings).trace(prompt)
    for kind, scores in whole.scores.items():
        np.testing.assert_allclose(cut.scores[kind], scores, rtol=1e-5)
