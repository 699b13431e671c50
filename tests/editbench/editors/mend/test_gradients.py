"""Rank-1 terms add up to what autograd says, for every family, however edits run together."""

import pytest
import torch
from torch.nn import functional

from editbench.editors.training.gradients import decompose_gradients
from editbench.editors.training.matrices import Matrix, find_matrices
from editbench.models.architecture import weight_is_transposed
from editbench.requests import EditRequest

REQUESTS = [
    EditRequest("a", "Danielle Darrieux", "The mother tongue of {} is", "French"),
    EditRequest("b", "Zoë Brandt", "In that year {} plays the sport of", "tennis, and chess"),
    EditRequest("c", "Q", "{} is", "long"),
]


def gradients_by_autograd(model, matrices, requests):
    """∂/∂W Σ over edits of the mean of −log p over target tokens; one edit at a time, unpadded."""
    weights = [model.model.get_parameter(matrix.name) for matrix in matrices]
    totals = [torch.zeros_like(weight) for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        for request in requests:
            prompt, target = model.tokens.encode_continuation(request.text, request.target)
            logits = model.model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
            loss = functional.cross_entropy(logits, torch.tensor(target))
            for total, part in zip(totals, torch.autograd.grad(loss, weights), strict=True):
                total.add_(part)
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    return {
        matrix.name: total.T
        if weight_is_transposed(model.model.get_submodule(matrix.module))
        else total
        for matrix, total in zip(matrices, totals, strict=True)
    }


def test_terms_add_up_to_the_gradient(family_model) -> None:
    matrices = find_matrices(family_model)
    terms, loss = decompose_gradients(family_model, matrices, REQUESTS)
    expected = gradients_by_autograd(family_model, matrices, REQUESTS)
    assert loss > 0
    for matrix in matrices:
        found = terms[matrix.name].gradients.T @ terms[matrix.name].inputs
        assert found.shape == (matrix.d_out, matrix.d_in)
        assert expected[matrix.name].norm() > 0
        error = (found - expected[matrix.name]).norm() / expected[matrix.name].norm()
        assert error < 1e-5, matrix.name


def test_edits_do_not_depend_on_what_they_run_with(model, cases) -> None:
    requests = [case.request for case in cases[:3]]
    matrices = find_matrices(model)
    together, _ = decompose_gradients(model, matrices, requests)
    for index, request in enumerate(requests):
        alone, _ = decompose_gradients(model, matrices, [request])
        for matrix in matrices:
            mine = together[matrix.name].edits == index
            for part in ("inputs", "gradients"):
                torch.testing.assert_close(
                    getattr(together[matrix.name], part)[mine],
                    getattr(alone[matrix.name], part),
                    rtol=1e-4,
                    atol=1e-7,
                )


def test_tokens_without_a_gradient_are_dropped(model, cases) -> None:
    """In the last block nothing but the predicting tokens matters, and padding never does."""
    requests = [case.request for case in cases[:3]]
    matrices = find_matrices(model)
    terms, _ = decompose_gradients(model, matrices, requests)
    n_targets = sum(
        len(model.tokens.encode_continuation(request.text, request.target)[1])
        for request in requests
    )
    n_tokens = [len(terms[matrix.name].edits) for matrix in matrices]
    assert n_tokens[-2:] == [n_targets, n_targets]
    n_real = sum(len(model.tokens.encode(request.text)) for request in requests)
    assert all(n_targets < n <= n_real + n_targets for n in n_tokens[:-2])


def test_the_model_is_left_as_it_is(model, cases) -> None:
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    decompose_gradients(model, find_matrices(model), [cases[0].request])
    after = model.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_hooks for module in model.model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.model.parameters())


def test_hooks_are_gone_after_an_error(model) -> None:
    too_long = EditRequest("x", "Ana " * 200, "{} is", "a poet")
    with pytest.raises(Exception, match="too long"):
        decompose_gradients(model, find_matrices(model), [too_long])
    assert not any(module._forward_hooks for module in model.model.modules())


GATED = {"llama", "mistral", "mistral_sliding", "qwen2", "qwen3", "gemma2", "gemma3", "olmo"}


def test_matrices_are_those_of_the_last_three_mlps(family_model, family) -> None:
    matrices = find_matrices(family_model)
    n_each = 3 if family in {*GATED, "olmo2"} else 2
    assert len(matrices) == 3 * n_each
    projections = set(family_model.architecture.mlp_projections[-3:])
    assert projections < {matrix.module for matrix in matrices}
    assert not any("attn" in each.name or "attention" in each.name for each in matrices)
    for matrix in matrices:
        shape = family_model.model.get_parameter(matrix.name).shape
        assert sorted(shape) == sorted((matrix.d_in, matrix.d_out))


def test_blocks_can_be_chosen(model) -> None:
    assert find_matrices(model, (1,)) == (
        Matrix("transformer.h.1.mlp.c_fc.weight", "transformer.h.1.mlp.c_fc", 24, 96),
        Matrix("transformer.h.1.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj", 96, 24),
    )
