"""The clean and the corrupted run of one prompt, and all that they leave behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from editbench.errors import ModelError
from editbench.models.continuing import find_continuing
from editbench.models.editable import EditableModel
from editbench.models.head import select_head_positions
from editbench.models.token_states import by_row
from editbench.tracing.settings import KINDS, Kind, SeveredKind
from editbench.tracing.traces import TracedPrompt
from memit_core import capture, intervene


@dataclass(frozen=True)
class Runs:
    """What one forward of the clean prompt and its corrupted copies leaves behind.

    Attributes:
        high_score: Probability of the answer in the clean run.
        low_score: Its mean over the corrupted copies.
        clean: By kind and layer, what the clean run puts out, `[n_tokens, d_model]`: blocks
            (``hidden``), and the output projections of MLPs and attention.
        entering: By layer, the corrupted states that enter a block, `[n_samples, n_tokens,
            d_model]`.
        corrupted: By kind of module and layer, what the output projections put out in the
            corrupted run, `[n_samples, n_tokens, d_model]`.
        keys_values: By layer, keys and values of the corrupted run, each
            `[n_samples, n_heads, n_tokens, d_head]`; none where the model keeps other things.
        kept: By name, what some other modules put out, `[1 + n_samples, n_tokens, d]`: in the clean
            run, and in the corrupted one.
    """

    high_score: float
    low_score: float
    clean: dict[Kind, list[Tensor]]
    entering: list[Tensor]
    corrupted: dict[Kind, list[Tensor]]
    keys_values: list[tuple[Tensor, Tensor]]
    kept: dict[str, Tensor]

    @property
    def n_samples(self) -> int:
        """How many corrupted copies there are."""
        return len(self.entering[0])


def module_paths(model: EditableModel, kind: Kind | SeveredKind) -> tuple[str, ...]:
    """The modules whose outputs are restored, one a layer.

    Of MLPs and attention it is what their output projections say, in front of any norm that stands
    between them and the residual stream. With modules severed it is blocks that are restored.
    """
    architecture = model.architecture
    if kind == "mlp":
        return architecture.mlp_projections
    if kind == "attention":
        return architecture.attention_projections
    return tuple(architecture.block(layer) for layer in range(architecture.n_layers))


def stack_rows(model: EditableModel, prompt: TracedPrompt, n_samples: int) -> dict[str, Tensor]:
    """The arguments of one forward: the clean prompt in row 0, and its copies."""
    return model.batch([prompt.token_ids] * (1 + n_samples))


def add_noise(embeddings: Tensor, prompt: TracedPrompt, noise: Tensor) -> Tensor:
    """Blur the subject's embeddings in all rows but the first.

    The sum is formed in the noise's float64, then cast.

    Args:
        embeddings: `[1 + n_samples, n_tokens, d]`.
        prompt: Says where the subject is.
        noise: `[n_samples, n_subject_tokens, d]`.
    """
    blurred = embeddings.clone()
    own = slice(prompt.subject.start, prompt.subject.stop)
    noise = noise.to(embeddings.device)
    blurred[1:, own] = (embeddings[1:, own] + noise).to(embeddings.dtype)
    return blurred


def answer_probabilities(logits: Tensor, answer: int) -> Tensor:
    """Probability of the answer in each row of logits, float32."""
    return logits.float().softmax(dim=-1)[:, answer]


def run_clean_and_corrupted(
    model: EditableModel, prompt: TracedPrompt, noise: Tensor, keep: Sequence[str] = ()
) -> Runs:
    """Run the prompt and its corrupted copies once, and keep everything.

    Args:
        model: The model.
        prompt: The prompt.
        noise: `[n_samples, n_subject_tokens, d_embedding]`.
        keep: Names of further modules whose outputs to keep.

    Raises:
        ModelError: Blocks hand on more than one residual stream.
    """
    n_layers, n_rows = model.architecture.n_layers, 1 + len(noise)
    has_attention = all(model.architecture.own_attention)
    kinds = [kind for kind in KINDS if kind != "attention" or has_attention]
    paths = {kind: module_paths(model, kind) for kind in kinds}
    # Without a configuration, a sliding window is left to the masks, and nothing is forgotten.
    cache = DynamicCache() if find_continuing(model) == "padded" else None
    last = torch.full((n_rows,), -1)
    with (
        torch.no_grad(),
        intervene(
            model.model,
            {model.architecture.embedding: lambda given: add_noise(given, prompt, noise)},
        ),
        capture(
            model.model,
            inputs_of=[paths["hidden"][0]],
            outputs_of=[*(path for group in paths.values() for path in group), *keep],
        ) as seen,
        select_head_positions(model, torch.arange(n_rows), last),
    ):
        inputs = stack_rows(model, prompt, len(noise))
        output = model.model(**inputs, past_key_values=cache, use_cache=cache is not None)
    embedded = seen.inputs[paths["hidden"][0]]
    if embedded.dim() != 3:
        raise ModelError(
            f"tracing '{model.name}': its blocks hand on several residual streams, got states of "
            f"shape {list(embedded.shape)}; expected one stream."
        )
    probabilities = answer_probabilities(output.logits[0], prompt.answer)
    outputs = {
        kind: [by_row(seen.outputs[path], n_rows) for path in group]
        for kind, group in paths.items()
    }
    entering = [embedded, *outputs["hidden"]]
    cached: Sequence[Any] = () if cache is None else cache.layers
    return Runs(
        high_score=float(probabilities[0]),
        low_score=float(probabilities[1:].mean()),
        clean={kind: [found[0] for found in layers] for kind, layers in outputs.items()},
        entering=[states[1:] for states in entering[:n_layers]],
        corrupted={
            kind: [found[1:] for found in layers]
            for kind, layers in outputs.items()
            if kind != "hidden"
        },
        keys_values=[(layer.keys[1:], layer.values[1:]) for layer in cached],
        kept={path: seen.outputs[path] for path in keep},
    )
