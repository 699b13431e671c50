"""A lean GPT-J for training: the same function as Hugging Face's, with less around it.

Parameters carry the names that `GPTJForCausalLM` gives them, so that an export is a copy.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPTJConfig, GPTJForCausalLM


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a GPT-J.

    Attributes:
        n_layers: Decoder blocks.
        d_model: Width of the residual stream.
        d_key: Width of the MLP's hidden layer, where the keys of edits live.
        n_heads: Attention heads.
        d_rotary: Coordinates of each head that carry the position.
        n_positions: Longest text, in tokens.
    """

    n_layers: int = 6
    d_model: int = 128
    d_key: int = 1024
    n_heads: int = 4
    d_rotary: int = 16
    n_positions: int = 256


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.n_heads = shape.n_heads
        self.q_proj = nn.Linear(shape.d_model, shape.d_model, bias=False)
        self.k_proj = nn.Linear(shape.d_model, shape.d_model, bias=False)
        self.v_proj = nn.Linear(shape.d_model, shape.d_model, bias=False)
        self.out_proj = nn.Linear(shape.d_model, shape.d_model, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        query, key, value = (
            rearrange(projection(x), "row token (head d) -> row head token d", head=self.n_heads)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        # Written out: at these sizes it trains faster on a CPU than the fused kernel.
        scores = _rotate(query, rotation) @ _rotate(key, rotation).mT / math.sqrt(query.shape[-1])
        mixed = scores.masked_fill(~mask, -math.inf).softmax(-1) @ value
        return self.out_proj(rearrange(mixed, "row head token d -> row token (head d)"))


class _MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.fc_in = nn.Linear(shape.d_model, shape.d_key)
        self.fc_out = nn.Linear(shape.d_key, shape.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_out(functional.gelu(self.fc_in(x), approximate="tanh"))


class _Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.d_model)
        self.attn = _Attention(shape)
        self.mlp = _MLP(shape)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        normed = self.ln_1(x)
        return x + self.attn(normed, rotation, mask) + self.mlp(normed)


class Network(nn.Module):
    """GPT-J with tied embeddings, initialised from a seed without touching the global RNG."""

    def __init__(self, n_vocabulary: int, shape: Shape, *, seed: int) -> None:
        super().__init__()
        self.n_vocabulary = n_vocabulary
        self.shape = shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.wte = nn.Embedding(n_vocabulary, shape.d_model)
            self.h = nn.ModuleList(_Block(shape) for _ in range(shape.n_layers))
            self.ln_f = nn.LayerNorm(shape.d_model)
            self._initialize()

    def _initialize(self) -> None:
        depth_scale = 1 / math.sqrt(2 * self.shape.n_layers)
        for name, parameter in self.named_parameters():
            if name == "wte.weight":
                nn.init.normal_(parameter, std=0.02)
            elif parameter.dim() == 2:
                writes_residual = "out_proj" in name or "fc_out" in name
                scale = depth_scale if writes_residual else 1.0
                nn.init.normal_(parameter, std=scale / math.sqrt(parameter.shape[1]))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self, tokens: Tensor, *, mask: Tensor | None = None, tap: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Predict the next token at every position.

        Args:
            tokens: ``[n_rows, width]``.
            mask: ``[n_rows, 1, width, width]``, True where a query (third axis) may attend to a key
                (fourth); None is causal.
            tap: Also return the hidden state after this block.

        Returns:
            Logits ``[n_rows, width, n_vocabulary]``, and ``[n_rows, width, d_model]`` or None.
        """
        x = self.wte(tokens)
        width = tokens.shape[1]
        rotation = _make_rotation(width, self.shape.d_rotary, x)
        if mask is None:
            mask = torch.ones(width, width, dtype=torch.bool, device=tokens.device).tril()
        tapped = None
        for index, block in enumerate(self.h):
            x = block(x, rotation, mask)
            if index == tap:
                tapped = x
        return functional.linear(self.ln_f(x), self.wte.weight), tapped


def _make_rotation(width: int, d_rotary: int, like: Tensor) -> tuple[Tensor, Tensor]:
    frequencies = 10_000.0 ** (-torch.arange(0, d_rotary, 2, device=like.device) / d_rotary)
    angles = torch.outer(torch.arange(width, device=like.device), frequencies)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of neighboring coordinates by angles that grow with the position."""
    cosine, sine = (part.to(x.dtype) for part in rotation)
    d_rotary = 2 * cosine.shape[-1]
    even, odd, rest = x[..., 0:d_rotary:2], x[..., 1:d_rotary:2], x[..., d_rotary:]
    turned = torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), dim=-1)
    return torch.cat((rearrange(turned, "... pair part -> ... (pair part)"), rest), dim=-1)


def export_network(network: Network) -> GPTJForCausalLM:
    """Copy the weights into the Hugging Face model that computes the same logits."""
    shape = network.shape
    config = GPTJConfig(
        vocab_size=network.n_vocabulary,
        n_positions=shape.n_positions,
        n_embd=shape.d_model,
        n_layer=shape.n_layers,
        n_head=shape.n_heads,
        rotary_dim=shape.d_rotary,
        n_inner=shape.d_key,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        model = GPTJForCausalLM(config)
    weights = {f"transformer.{name}": weight for name, weight in network.state_dict().items()}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    weights["lm_head.bias"] = torch.zeros(network.n_vocabulary)
    model.load_state_dict({name: weight.detach().clone() for name, weight in weights.items()})
    return model.train(False).requires_grad_(False)
