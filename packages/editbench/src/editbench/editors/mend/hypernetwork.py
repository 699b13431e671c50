"""The network that turns the terms of a gradient into the terms of an update.

Mitchell et al., 2021, section 3.2. For a weight of the shape ``[d_out, d_in]`` and each token's
z = u‖v, normalized:

    h = z + relu(s₁ ⊙ (U₁V₁z + b₁) + o₁),    ũ‖ṽ = h + s₂ ⊙ (U₂V₂h + b₂) + o₂,    Δ = −α Σ ṽ ũᵀ

U, V and b are shared by all weights of one shape; scale s, offset o and the rate α are each
weight's own, and are addressed by its name. U, b and o start at 0 and s at 1, so that Δ starts as a
step down the gradient, of normalized terms.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from editbench.editors.training.gradients import GradientTerms
from editbench.editors.training.matrices import Matrix


class RunningStatistics(nn.Module):
    """Mean and standard deviation over all tokens seen in training, dimension by dimension."""

    n_seen: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))

    def observe(self, tokens: Tensor) -> None:
        """Take in some tokens, ``[n_tokens, width]``."""
        if not len(tokens):
            return
        n_new, n_before = len(tokens), int(self.n_seen)
        mean = tokens.mean(dim=0)
        gap = mean - self.mean
        share = n_new / (n_before + n_new)
        self.squares += (tokens - mean).square().sum(dim=0) + gap.square() * n_before * share
        self.mean += gap * share
        self.n_seen += n_new

    def normalize(self, tokens: Tensor) -> Tensor:
        """Make what was observed have mean 0 and variance 1; a constant dimension is centered."""
        if int(self.n_seen) < 2:
            return tokens
        deviation = (self.squares / (self.n_seen - 1)).sqrt()
        return (tokens - self.mean) / torch.where(deviation > 0, deviation, 1.0)


class _ResidualLayer(nn.Module):
    """z + s ⊙ (UVz + b) + o, of low rank, with or without a rectifier around the second term."""

    def __init__(self, width: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.out = nn.Parameter(torch.zeros(width, rank))
        self.into = nn.Parameter(torch.randn(rank, width, generator=generator))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, z: Tensor, scale: Tensor, offset: Tensor, *, rectify: bool) -> Tensor:
        change = scale * (z @ self.into.T @ self.out.T + self.bias) + offset
        # At 0, where all begins, the gradient of relu() is 0, and nothing would ever be learned.
        return z + (change.clamp(min=0) if rectify else change)


class _OwnTerms(nn.Module):
    """What belongs to one weight alone."""

    def __init__(self, matrix: Matrix, rate: float) -> None:
        super().__init__()
        width = matrix.d_in + matrix.d_out
        self.scale = nn.Parameter(torch.ones(2, width))
        self.offset = nn.Parameter(torch.zeros(2, width))
        self.rate = nn.Parameter(torch.tensor(float(rate)))
        self.input_statistics = RunningStatistics(matrix.d_in)
        self.gradient_statistics = RunningStatistics(matrix.d_out)


class Hypernetwork(nn.Module):
    """The networks of all edited weights, one for each shape.

    Args:
        matrices: The edited weights; their order is of no consequence.
        rank: Rank of U and V; no more than a weight's d_in + d_out makes sense, and it is cut
            to that.
        rate: What every rate α starts with.
        seed: Seeds V. The global random state is left alone.
    """

    def __init__(self, matrices: Sequence[Matrix], *, rank: int, rate: float, seed: int) -> None:
        super().__init__()
        self.matrices = tuple(matrices)
        self.shared = nn.ModuleDict()
        for d_in, d_out in sorted({(matrix.d_in, matrix.d_out) for matrix in matrices}):
            generator = torch.Generator().manual_seed(seed)
            width = d_in + d_out
            self.shared[f"{d_in}x{d_out}"] = nn.ModuleList(
                _ResidualLayer(width, min(rank, width), generator) for _ in range(2)
            )
        self.own = nn.ModuleDict({_key(each.name): _OwnTerms(each, rate) for each in matrices})

    def observe(self, matrix: Matrix, terms: GradientTerms) -> None:
        """Let a gradient's terms count in the statistics that normalize: in training only."""
        own = self._own(matrix)
        own.input_statistics.observe(terms.inputs)
        own.gradient_statistics.observe(terms.gradients)

    def forward(self, matrix: Matrix, terms: GradientTerms) -> tuple[Tensor, Tensor]:
        """The terms of one weight's update.

        Returns:
            −α ṽ ``[n_tokens, d_out]`` and ũ ``[n_tokens, d_in]``: Δ is the sum over tokens of the
            outer products of their rows.
        """
        own = self._own(matrix)
        u = own.input_statistics.normalize(terms.inputs)
        v = own.gradient_statistics.normalize(terms.gradients)
        z = torch.cat([u, v], dim=-1)
        layers = self.shared[f"{matrix.d_in}x{matrix.d_out}"]
        assert isinstance(layers, nn.ModuleList)
        first, second = layers
        z = first(z, own.scale[0], own.offset[0], rectify=True)
        z = second(z, own.scale[1], own.offset[1], rectify=False)
        u, v = z.split([matrix.d_in, matrix.d_out], dim=-1)
        return -own.rate * v, u

    def rate_of(self, name: str) -> nn.Parameter:
        """The learned rate α of a weight, by the weight's name."""
        return self.own[_key(name)].rate  # type: ignore[return-value]

    def _own(self, matrix: Matrix) -> _OwnTerms:
        own = self.own[_key(matrix.name)]
        assert isinstance(own, _OwnTerms)
        return own


def _key(name: str) -> str:
    """A weight's name as the name of a module, which has no dots."""
    return name.replace(".", "/")
