"""Factorized second moments on disk."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from editbench.files.tensor_files import DamagedError
from editbench.second_moments.factors import load_factor, save_factor
from memit_core import (
    FactorizedSecondMoment,
    IllPosedError,
    Preservation,
    ShapeError,
    solve_edits,
    solve_update,
)

CPU = torch.device("cpu")


@pytest.fixture
def moment() -> torch.Tensor:
    keys = torch.randn(40, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return keys.mT @ keys / 40


def test_a_loaded_factor_solves_as_it_did(tmp_path: Path, moment: torch.Tensor) -> None:
    path = tmp_path / "factor.safetensors"
    factorized = FactorizedSecondMoment(moment)
    save_factor(path, factorized, {"layer": 3})
    loaded, provenance = load_factor(path, CPU)
    assert provenance == {"layer": 3}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert torch.equal(loaded.factor, factorized.factor)
    torch.testing.assert_close(loaded.factor @ loaded.factor.mT, moment, rtol=1e-13, atol=1e-13)
    for n_edits in (2, 30):
        generator = torch.Generator().manual_seed(n_edits)
        keys, residuals = (torch.randn(n_edits, d, generator=generator) for d in (7, 5))
        some, same = (
            solve_update(keys, residuals, each, preservation_weight=2.0)
            for each in (factorized, loaded)
        )
        # Mapped memory begins elsewhere, and some processors' products round by that.
        torch.testing.assert_close(same, some, rtol=1e-12, atol=1e-14)
        expected = solve_update(keys, residuals, moment, preservation_weight=2.0)
        found = solve_update(keys, residuals, loaded, preservation_weight=2.0)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    exact = solve_edits(keys[:3], residuals[:3], Preservation(loaded), slack=0)
    torch.testing.assert_close(exact.dense() @ keys[:3].double().mT, residuals[:3].double().mT)


def test_a_loaded_factor_is_mapped_and_its_file_out_of_reach(
    tmp_path: Path, moment: torch.Tensor
) -> None:
    path = tmp_path / "factor.safetensors"
    save_factor(path, FactorizedSecondMoment(moment), {})
    loaded, _ = load_factor(path, CPU)
    assert loaded.factor.mT.is_contiguous(), "the file's own order, so nothing is copied"
    before = path.read_bytes()
    loaded.factor.zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"layers.1": torch.eye(3)}, ValueError, r"got tensors \['layers.1'\]; expected 'fac"),
        ({"factor": torch.eye(3)}, ShapeError, r"got torch.float32; expected torch.float64"),
        ({"factor": torch.ones(2, 3).double()}, ShapeError, r"got float64 \[3, 2\]"),
        ({"factor": torch.diag(torch.tensor([1.0, 0.0])).double()}, IllPosedError, "positive"),
        ({"factor": torch.full((1, 1), torch.nan).double()}, ValueError, "not finite"),
    ],
)
def test_files_that_are_no_factors_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], error: type[Exception], message: str
) -> None:
    path = tmp_path / "factor.safetensors"
    save_file(tensors, path)
    with pytest.raises(error, match=message):
        load_factor(path, CPU)


def test_damaged_files_are_refused(tmp_path: Path, moment: torch.Tensor) -> None:
    path = tmp_path / "factor.safetensors"
    save_factor(path, FactorizedSecondMoment(moment), {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="deserializ"):
        load_factor(path, CPU)
    with pytest.raises(OSError, match="none"):
        save_factor(tmp_path / "none" / "factor", FactorizedSecondMoment(moment), {})


def test_factors_are_checked_where_nothing_but_a_solve_would_look(
    tmp_path: Path, moment: torch.Tensor
) -> None:
    path = tmp_path / "factor.safetensors"
    save_factor(path, FactorizedSecondMoment(moment), {"layer": 3})
    factor = load_file(path)["factor"]
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    factor[0, 3] += 1
    save_file({"factor": factor}, path, metadata=metadata)
    with pytest.raises(DamagedError, match=r"tensor 'factor' is not what"):
        load_factor(path, CPU)
    factor[0, 3] = float("nan")
    save_file({"factor": factor}, path)
    with pytest.raises(ValueError, match="not finite"):
        load_factor(path, CPU)
