"""Noise on a subject's embeddings: how large, and which."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from editbench.errors import TraceError
from editbench.models.editable import EditableModel
from editbench.tracing.facts import KnownFact
from editbench.tracing.settings import TraceSettings
from editbench.tracing.traces import TracedPrompt

_REFERENCE_SEED = 1


def measure_spread(model: EditableModel, facts: Sequence[KnownFact]) -> float:
    """σ: standard deviation of the embeddings of all subjects' tokens, pooled over dimensions.

    As in the reference: each subject is tokenized alone, every fact counts, and the estimate is the
    unbiased one. What the tokenizer puts before every text is no subject's.
    """
    pooled: list[int] = []
    for fact in facts:
        token_ids = model.tokens.encode(fact.subject)
        own = model.tokens.locate_all(fact.subject, 0, len(fact.subject))
        pooled += token_ids[own.start : own.stop]
    if not pooled:
        raise TraceError("measure noise: no subject has a token, got 0 facts. Give some facts.")
    # Moments of all tokens by how often each occurs: 20,000 subjects share few distinct tokens.
    distinct, counts = np.unique(np.asarray(pooled), return_counts=True)
    embed = model.model.get_submodule(model.architecture.embedding)
    with torch.no_grad():
        embedded = embed(torch.from_numpy(distinct)[None].to(model.device))
    vectors = embedded[0].double().cpu().numpy()
    n_values = counts.sum() * vectors.shape[1]
    mean = (counts @ vectors).sum() / n_values
    squares = (counts @ np.square(vectors - mean)).sum()
    return float(np.sqrt(squares / (n_values - 1)))


def draw_noise(model: EditableModel, prompt: TracedPrompt, settings: TraceSettings) -> Tensor:
    """The noise of one prompt, the same for all of its cells.

    Returns:
        Noise, float64, `[n_samples, n_subject_tokens, d_embedding]`: an embedding is not always as
        wide as the residual stream.
    """
    embedding = model.model.get_submodule(model.architecture.embedding)
    d_embedding = embedding.get_parameter("weight").shape[1]
    shape = (settings.n_samples, len(prompt.subject), d_embedding)
    if settings.noise_source == "reference":
        draws = torch.from_numpy(np.random.RandomState(_REFERENCE_SEED).randn(*shape))
    else:
        text = f"{settings.seed}\n{prompt.fact.subject_start}\n{prompt.fact.prompt}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        draws = torch.randn(shape, generator=generator, dtype=torch.float64)
    return settings.noise_level * draws
