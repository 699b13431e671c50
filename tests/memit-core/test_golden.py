"""Numbers that other code computed: exact rational arithmetic, and the reference implementation."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from memit_core import (
    FactorizedSecondMoment,
    Preservation,
    SecondMoment,
    UpdateFactors,
    solve_edits,
    solve_update,
    spread_residuals,
)

CASES = json.loads(Path(__file__).with_name("golden.json").read_text())


def relative_gap(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float(torch.linalg.norm(actual - expected) / torch.linalg.norm(expected))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_exact_rational_arithmetic(case: dict[str, list[list[float]]], dtype: torch.dtype) -> None:
    exact = {
        name: torch.tensor(value, dtype=torch.float64)
        for name, value in case.items()
        if name != "preservation_weight"
    }
    keys, residuals, tokens = (exact[n].to(dtype) for n in ("keys", "residuals", "tokens"))
    second_moment = SecondMoment(tokens.shape[1])
    second_moment.update(tokens)
    assert relative_gap(second_moment.moment(), exact["second_moment"]) < 1e-15

    weight = case["preservation_weight"]
    for moment in (exact["second_moment"], FactorizedSecondMoment(exact["second_moment"])):
        update = solve_update(keys, residuals, moment, preservation_weight=weight)
        assert relative_gap(update, exact["update"]) < 1e-12
        if "equality_update" in exact:
            exactly = solve_edits(keys, residuals, Preservation(moment), slack=0)
            update = exactly if isinstance(exactly, Tensor) else exactly.dense()
            assert relative_gap(update, exact["equality_update"]) < 1e-12


@pytest.mark.parametrize(("model", "stored_transposed"), [("gpt2", True), ("gptj", False)])
def test_reference_implementation(shared: Path, model: str, stored_transposed: bool) -> None:
    folder = shared / "reference" / "golden" / model
    if not folder.is_dir():
        pytest.skip(f"needs the reference vectors in {folder}")
    hparams = json.loads((folder / "hparams.json").read_text())["memit"]
    tensors = load_file(folder / "memit.safetensors")
    moments = load_file(folder / "covariance.safetensors")
    weight, layers = hparams["mom2_update_weight"], hparams["layers"]
    for index, layer in enumerate(layers):
        residuals = spread_residuals(
            tensors["z"], tensors[f"layer.{layer}.cur_h"], n_layers_left=len(layers) - index
        )
        assert torch.equal(residuals, tensors[f"layer.{layer}.resid"])
        keys, moment = tensors[f"layer.{layer}.keys"], moments[f"layer.{layer}.moment"]
        expected = tensors[f"layer.{layer}.update"]
        if stored_transposed:
            expected = expected.mT
        update = solve_update(keys, residuals, moment, preservation_weight=weight)
        assert relative_gap(update, expected) < 1e-8
        plain = Preservation(moment, weight=weight)
        for preservation in (plain, plain.factorized()):
            factors = solve_edits(keys, residuals, preservation)
            assert isinstance(factors, UpdateFactors)
            assert relative_gap(factors.dense(), expected) < 1e-8
            assert relative_gap(factors.right, tensors[f"layer.{layer}.adj_k"]) < 1e-8
