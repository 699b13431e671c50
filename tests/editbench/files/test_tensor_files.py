"""Tensors with a card in files: any damage is met, and files without checksums are read."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from editbench.files.tensor_files import (
    DamagedError,
    TensorFile,
    checksum_tensor,
    write_tensors,
)

law = settings(derandomize=True, deadline=None, max_examples=40)
CARD = {"b": 1, "a": {"2": [1.5, None, "ü"]}}


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


def test_cards_come_back_and_any_change_of_them_is_met(tmp_path: Path) -> None:
    path, tensors = tmp_path / "file", {"t": torch.ones(2)}
    write_tensors(path, tensors, CARD)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    sealed = json.loads(header["__metadata__"]["editbench"])
    assert sealed["checksums"] == {"t": checksum_tensor(torch.ones(2))}
    assert TensorFile(path).card == CARD
    changes = [{**sealed, **change} for change in ({"b": 2}, {"c": 0}, {"checksum": "0"})]
    changes += [{**sealed, "checksums": {}}, {k: v for k, v in sealed.items() if k != "checksum"}]
    for changed in changes:
        save_file(tensors, path, {"editbench": json.dumps(changed)})
        with pytest.raises(DamagedError, match="its checksum is another"):
            TensorFile(path)


def test_files_of_other_programs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for metadata, card in ((None, None), ({"format": "pt"}, None), ({"editbench": "{}"}, {})):
        save_file({"t": torch.ones(2)}, path, metadata)
        file = TensorFile(path)
        assert (file.card, file.is_sealed) == (card, False)
        assert file.read_all()["t"].tolist() == [1, 1]


def test_what_is_mapped_is_out_of_reach(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_tensors(path, {"t": torch.ones(2)}, {})
    before = path.read_bytes()
    TensorFile(path).read("t").zero_()
    assert path.read_bytes() == before
