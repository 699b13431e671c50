"""Files as they were written when their formats were first fixed: they are read for good."""

from pathlib import Path

import pytest
import torch

from editbench.edits.files import read_edit_file
from editbench.files.tensor_files import DamagedError, TensorFile
from editbench.second_moments.factors import load_factor
from editbench.second_moments.moment_files import SecondMomentFile, load_second_moments
from editbench.tracing.folder import read_traces
from memit_core import SecondMoment, UpdateFactors

WRITTEN = Path(__file__).parent / "written"
KEYS = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)


def test_second_moments() -> None:
    found = load_second_moments(WRITTEN / "second_moments.safetensors")
    assert found.provenance == {
        "model_name": "tiny, überall",
        "model_fingerprint": "f" * 32,
        "n_tokens": 3,
        "layers": [3, 10],
        "x": 1.5,
        "none": None,
    }
    collected = SecondMoment(2)
    collected.update(KEYS)
    assert {layer: each.n_tokens for layer, each in found.moments.items()} == {3: 3, 10: None}
    assert torch.equal(found.moments[3].moment(), collected.moment())
    assert torch.equal(found.moments[10].moment(), torch.eye(2))
    file = SecondMomentFile(WRITTEN / "second_moments.safetensors")
    assert file.is_sealed
    file.check(3)


def test_factors() -> None:
    factorized, provenance = load_factor(WRITTEN / "factor.safetensors", torch.device("cpu"))
    assert provenance == {"layer": 3, "name": "factor.safetensors"}
    factor = factorized.factor.tril()
    torch.testing.assert_close(factor @ factor.mT, KEYS.mT @ KEYS / 3, rtol=1e-14, atol=1e-14)


def test_edits() -> None:
    updates, card, recipe = read_edit_file(WRITTEN / "edit.safetensors")
    assert recipe is None  # earlier versions did not keep it
    assert card.config == {"a": 1.5e-05, "b": [1, 2], "ü": None}
    assert card.extra == {"facts": [{"case_id": "é"}]}
    assert (card.n_edits, card.edits_on, card.model_dtype) == (1, (), None)
    factors = updates["model.w.weight"]
    assert isinstance(factors, UpdateFactors)
    assert factors.dense().tolist() == [[0.5, 0.25, 0.0], [1.0, 0.5, 0.0]]
    assert torch.equal(updates["model.b"], torch.tensor([1.0, -1.0]))


def test_traces() -> None:
    (trace,) = read_traces(WRITTEN)
    assert trace.prompt.fact.subject == "Zoë"
    assert trace.prompt.texts == ("Zo", "ë", " was")
    assert (trace.high_score, trace.low_score) == (0.75, 0.125)
    assert trace.scores["hidden"].tolist() == [[0.5, 0.25], [0.0, 1.0]]


@pytest.mark.parametrize("path", sorted(WRITTEN.rglob("*.safetensors")), ids=lambda path: path.stem)
def test_every_checksum_is_looked_at(path: Path, tmp_path: Path) -> None:
    assert TensorFile(path).is_sealed
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    changed = tmp_path / path.name
    changed.write_bytes(data)
    with pytest.raises(DamagedError, match="its checksum is another"):
        TensorFile(changed).read_all()
