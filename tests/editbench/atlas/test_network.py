"""The lean network is GPT-J."""

import pytest
import torch

from editbench.atlas.network import Network, Shape, export_network

SHAPE = Shape(n_layers=3, d_model=32, d_key=80, n_heads=2, d_rotary=8, n_positions=64)


@pytest.fixture
def network() -> Network:
    network = Network(50, SHAPE, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():  # biases and norms too: none may be left out
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.requires_grad_(False)


def test_exported_model_computes_the_same_logits(network: Network):
    tokens = torch.randint(0, 50, (3, 40), generator=torch.Generator().manual_seed(2))
    logits, tapped = network(tokens)
    assert tapped is None
    torch.testing.assert_close(
        export_network(network)(input_ids=tokens).logits, logits, atol=1e-5, rtol=1e-5
    )


def test_tapped_state_is_the_output_of_that_block(network: Network):
    tokens = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(2))
    _, tapped = network(tokens, tap=1)
    states = export_network(network)(input_ids=tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(tapped, states[2], atol=1e-5, rtol=1e-5)


def test_export_does_not_share_memory(network: Network):
    exported = export_network(network)
    exported.transformer.wte.weight.zero_()
    assert network.wte.weight.abs().sum() > 0


def test_weights_follow_the_seed_and_leave_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    first, again, other = (Network(50, SHAPE, seed=seed) for seed in (1, 1, 2))
    export_network(first)
    assert torch.equal(torch.random.get_rng_state(), before)
    for one, two in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first.wte.weight, other.wte.weight)


def test_the_mask_hides_keys(network: Network):
    tokens = torch.randint(0, 50, (1, 10), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 50
    mask = torch.ones(10, 10, dtype=torch.bool).tril()
    mask[4:, 3] = False
    one, _ = network(tokens, mask=mask[None, None])
    two, _ = network(changed, mask=mask[None, None])
    torch.testing.assert_close(one[:, 4:], two[:, 4:])
    assert not torch.allclose(network(tokens)[0][:, 4:], network(changed)[0][:, 4:])
