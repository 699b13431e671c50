"""The network: identity at the start, statistics by the book, everything addressed by name."""

import pytest
import torch

from editbench.editors.mend.hypernetwork import Hypernetwork, RunningStatistics
from editbench.editors.training.gradients import GradientTerms, decompose_gradients
from editbench.editors.training.matrices import Matrix, find_matrices

MATRICES = (
    Matrix("h.0.up.weight", "h.0.up", 3, 5),
    Matrix("h.0.down.weight", "h.0.down", 5, 3),
    Matrix("h.1.up.weight", "h.1.up", 3, 5),
)


def random_terms(matrix: Matrix, n: int = 4, seed: int = 0) -> GradientTerms:
    chance = torch.Generator().manual_seed(seed)
    return GradientTerms(
        torch.randn(n, matrix.d_in, generator=chance),
        torch.randn(n, matrix.d_out, generator=chance),
        torch.zeros(n, dtype=torch.long),
        torch.arange(n),
    )


def scrambled(matrices=MATRICES, seed: int = 1) -> Hypernetwork:
    """A network that is far from the identity, each weight's terms unlike the others'."""
    network = Hypernetwork(matrices, rank=2, rate=0.1, seed=0)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            chance = torch.Generator().manual_seed(seed + sum(map(ord, name)))
            tensor.copy_(torch.rand(tensor.shape, generator=chance) + 0.1)
        else:
            tensor.fill_(10)
    return network


def test_it_starts_as_a_step_down_the_gradient(model, cases) -> None:
    matrices = find_matrices(model)
    network = Hypernetwork(matrices, rank=4, rate=0.25, seed=0)
    terms, _ = decompose_gradients(model, matrices, [cases[0].request])
    for matrix in matrices:
        left, right = network(matrix, terms[matrix.name])
        gradient = terms[matrix.name].gradients.T @ terms[matrix.name].inputs
        torch.testing.assert_close(left.T @ right, -0.25 * gradient)


def test_it_learns_from_the_start() -> None:
    """Every parameter gets a gradient within two steps: the rectifier does not block at 0."""
    network = Hypernetwork(MATRICES, rank=2, rate=0.1, seed=0)
    adam = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        adam.zero_grad()
        loss = sum(
            part.square().sum()
            for matrix in MATRICES
            for part in network(matrix, random_terms(matrix))
        )
        torch.autograd.backward(loss)
        adam.step()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.norm() > 0, name


def test_formula() -> None:
    network = scrambled()
    matrix = MATRICES[0]
    terms = random_terms(matrix)
    state = network.state_dict()
    own = {
        name.removeprefix("own.h/0/up/weight."): tensor
        for name, tensor in state.items()
        if name.startswith("own.h/0/up/weight.")
    }
    parts = []
    for kind, tokens in (("input", terms.inputs), ("gradient", terms.gradients)):
        deviation = (own[f"{kind}_statistics.squares"] / 9).sqrt()
        parts.append((tokens - own[f"{kind}_statistics.mean"]) / deviation)
    z = torch.cat(parts, dim=1)
    for layer, rectify in ((0, True), (1, False)):
        shared = {part: state[f"shared.3x5.{layer}.{part}"] for part in ("out", "into", "bias")}
        change = own["scale"][layer] * (z @ (shared["out"] @ shared["into"]).T + shared["bias"])
        change = change + own["offset"][layer]
        z = z + (change.relu() if rectify else change)
    left, right = network(matrix, terms)
    torch.testing.assert_close(right, z[:, :3])
    torch.testing.assert_close(left, -own["rate"] * z[:, 3:])


def test_the_order_of_weights_is_of_no_consequence() -> None:
    network = scrambled()
    permuted = Hypernetwork(MATRICES[::-1], rank=2, rate=0.7, seed=9)
    permuted.load_state_dict(network.state_dict())
    for matrix in MATRICES:
        for one, other in zip(
            network(matrix, random_terms(matrix)),
            permuted(matrix, random_terms(matrix)),
            strict=True,
        ):
            assert torch.equal(one, other)
        assert torch.equal(network.rate_of(matrix.name), permuted.rate_of(matrix.name))
    rates = {network.rate_of(matrix.name).item() for matrix in MATRICES}
    assert len(rates) == 3


def test_weights_of_one_shape_share_a_network_and_others_do_not() -> None:
    network = Hypernetwork(MATRICES, rank=2, rate=0.1, seed=0)
    assert set(network.shared) == {"3x5", "5x3"}
    assert len(network.own) == 3


def test_the_seed_makes_the_network_and_no_global_state_is_touched() -> None:
    before = torch.get_rng_state()
    one, same, other = (
        Hypernetwork(MATRICES, rank=2, rate=0.1, seed=seed).state_dict()["shared.3x5.0.into"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("cuts", [(20,), (1, 19), (7, 0, 7, 6)])
def test_statistics_are_those_of_all_tokens(cuts: tuple[int, ...]) -> None:
    tokens = 3 + 2 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    tokens[:, 3] = 7  # never varies
    statistics = RunningStatistics(4)
    assert torch.equal(statistics.normalize(tokens), tokens)
    for part in tokens.split(list(cuts)):
        statistics.observe(part)
    normalized = statistics.normalize(tokens)
    torch.testing.assert_close(normalized.mean(dim=0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(normalized[:, :3].std(dim=0), torch.ones(3))
    torch.testing.assert_close(normalized[:, 3], torch.zeros(20), rtol=0, atol=1e-5)
