"""Checksums of tensor files: any damage is met, and files without checksums are read."""

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from memit_core import (
    DamagedError,
    FactorizedSecondMoment,
    IllPosedError,
    IndefiniteError,
    MemitCoreError,
    SecondMoment,
    SecondMomentFile,
    load_factor,
    load_second_moments,
    save_factor,
    save_second_moments,
    solve_update,
)
from memit_core.checksums import checksum_tensor, seal_card, unseal_card

law = settings(derandomize=True, deadline=None, max_examples=40)


def moment_of(d_key: int = 6, seed: int = 0) -> SecondMoment:
    moment = SecondMoment(d_key)
    generator = torch.Generator().manual_seed(seed)
    moment.update(torch.randn(50, d_key, generator=generator, dtype=torch.float64))
    return moment


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "moments.safetensors"
    save_second_moments(path, {3: moment_of()}, {"model": "m"})
    return path


@law
@given(st.lists(st.integers(0, 4), max_size=3), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_checksum_depends_on_shape_dtype_and_every_bit(
    shape: list[int], dtype: torch.dtype
) -> None:
    tensor = torch.ones(shape, dtype=dtype)
    sums = {checksum_tensor(tensor), checksum_tensor(tensor[None]), checksum_tensor(tensor.half())}
    if tensor.numel():
        changed = tensor.clone().reshape(-1)
        changed[-1] = -1
        sums.add(checksum_tensor(changed.reshape(shape)))
    assert len(sums) == 3 + bool(tensor.numel())


def test_a_checksum_of_pieces_is_that_of_the_same_bytes_laid_out_otherwise() -> None:
    tensor = torch.arange(2**22 + 3, dtype=torch.int64)  # three pieces
    spread = torch.stack([tensor, tensor], dim=1)[:, 0]
    assert not spread.is_contiguous()
    assert checksum_tensor(spread) == checksum_tensor(tensor)
    tensor[-1] = 0
    assert checksum_tensor(spread) != checksum_tensor(tensor)


def test_cards_come_back_and_any_change_of_them_is_met() -> None:
    card = {"b": 1, "a": {"2": [1.5, None, "ü"]}}
    sealed = json.loads(json.dumps(seal_card(card, {"t": torch.ones(2)}), sort_keys=True))
    assert unseal_card(sealed) == (card, {"t": checksum_tensor(torch.ones(2))})
    assert unseal_card(card) == (card, None)
    for change in ({"b": 2}, {"c": 0}, {"checksums": {}}, {"checksum": "0"}):
        with pytest.raises(DamagedError, match="its checksum is another"):
            unseal_card({**sealed, **change})
    with pytest.raises(DamagedError):
        unseal_card({key: value for key, value in sealed.items() if key != "checksum"})


@pytest.mark.parametrize("seed", range(60))
def test_any_flipped_bit_is_met_or_changes_nothing(path: Path, seed: int) -> None:
    expected = load_second_moments(path)
    data = bytearray(path.read_bytes())
    data[random.Random(seed).randrange(len(data))] ^= 1 << seed % 8
    path.write_bytes(data)
    try:
        found = load_second_moments(path)
    except MemitCoreError:
        return
    assert found.provenance == expected.provenance
    assert torch.equal(found.moments[3].moment(), expected.moments[3].moment())


def test_other_numbers_under_the_old_card_are_met(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({"layers.3": 2 * load_file(path)["layers.3"]}, path, metadata=metadata)
    file = SecondMomentFile(path)
    for read in (file.read, file.load, file.check):
        with pytest.raises(DamagedError, match=r"tensor 'layers.3' is not what was written"):
            read(3)
    save_file({"layers.4": load_file(path)["layers.3"]}, path, metadata=metadata)
    with pytest.raises(DamagedError, match=r"got \['layers.4'\]; expected \['layers.3'\]"):
        SecondMomentFile(path)


def test_a_file_that_changes_is_checked_again(path: Path) -> None:
    SecondMomentFile(path).check(3)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    with pytest.raises(MemitCoreError):
        SecondMomentFile(path).check(3)


def test_files_without_checksums_are_read(path: Path) -> None:
    save_file(load_file(path), path)
    file = SecondMomentFile(path)
    assert not file.is_sealed
    file.check(3)
    assert torch.equal(file.read(3), moment_of().moment())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda moment: moment.fill_(float("nan")), r"finite, got nan at \[0, 0\]"),
        (lambda moment: moment[2, 4].fill_(float("nan")), r"finite, got nan at \[2, 4\]"),
        (lambda moment: moment[5, 1].fill_(float("inf")), r"finite, got inf at \[5, 1\]"),
        (lambda moment: moment.zero_(), r"no positive diagonal entry, got 6 zeros"),
        (lambda moment: moment[3, 3].fill_(0), r"negative eigenvalue, got .*expected at most 0\.0"),
        (lambda moment: moment[3, 3].fill_(-2), r"negative diagonal entry, got -2.* at \[3, 3\]"),
        (lambda moment: moment[4, 1].add_(1), r"not symmetric, got .* at \[1, 4\] and .* \[4, 1\]"),
        (lambda moment: moment[4, 1].add_(9) + moment[1, 4].add_(9), r"eigenvalue.* at \[1, 4\]"),
    ],
)
def test_numbers_that_are_no_second_moment_are_refused_by_file_layer_and_entry(
    path: Path, spoil, message: str
) -> None:
    moment = load_file(path)["layers.3"]
    spoil(moment)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for card, damaged in (({}, False), (metadata, True)):
        save_file({"layers.3": moment}, path, metadata=card)
        with pytest.raises(IllPosedError, match=rf"{path.name}: layer 3: .*{message}") as caught:
            SecondMomentFile(path).check(3)
        assert ("The file was damaged" in str(caught.value)) == damaged


def test_a_negative_eigenvalue_is_not_called_singular() -> None:
    values, vectors = torch.linalg.eigh(moment_of(8).moment())
    values[0] = -0.1 * values[-1]
    indefinite = vectors @ values.diag() @ vectors.mT
    with pytest.raises(IndefiniteError, match=r"FactorizedSecondMoment.* negative eigenvalue"):
        FactorizedSecondMoment(indefinite)
    keys, residuals = torch.ones(1, 8), torch.ones(1, 3)
    with pytest.raises(IndefiniteError, match=r"solve_update: .* negative eigenvalue") as caught:
        solve_update(keys, residuals, indefinite, preservation_weight=100)
    assert f"[{caught.value.row}, {caught.value.row}]" in str(caught.value)
    assert "at [70, 70]" in str(caught.value.at(70)).replace("meets at", "at")
    singular = torch.ones(8, 8)
    with pytest.raises(IllPosedError, match="singular") as other:
        FactorizedSecondMoment(singular)
    assert not isinstance(other.value, IndefiniteError)


def test_factors_are_checked_where_nothing_but_a_solve_would_look(tmp_path: Path) -> None:
    path = tmp_path / "factor.safetensors"
    save_factor(path, FactorizedSecondMoment(moment_of().moment()), {"layer": 3})
    factor = load_file(path)["factor"]
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    factor[0, 3] += 1
    save_file({"factor": factor}, path, metadata=metadata)
    with pytest.raises(DamagedError, match=r"load_factor: .*tensor 'factor' is not what"):
        load_factor(path)
    factor[0, 3] = float("nan")
    save_file({"factor": factor}, path)
    with pytest.raises(IllPosedError, match=r"`factor` must be finite, got nan at \[0, 3\]"):
        load_factor(path)
