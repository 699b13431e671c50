"""The table of architectures: kinds that are edited, refused, and that none is broken."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest

FOLDER = Path(__file__).parents[3] / "docs" / "reference" / "architectures"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    with patch.object(sys, "path", [str(FOLDER), *sys.path]):
        return importlib.import_module("make_table")


@pytest.mark.parametrize(
    "kind", ["lfm2", "jamba, dense", "recurrent_gemma", "rwkv", "openai-gpt", "gemma3n_text"]
)
def test_works_by_whole_forwards(kind: str, table: ModuleType) -> None:
    ((_, outcome),) = table.try_all([kind])
    assert (outcome.result, outcome.reason.count("\n")) == ("whole forwards", 0), outcome.reason


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("mixtral", "mixture of experts"),
        ("mamba", "with attention in them, found 0"),
        ("zamba2", "MLP's output projection"),
        ("xlnet", "depends on later tokens"),
        ("reformer", "no gradient comes back"),
    ],
)
def test_refused(kind: str, reason: str, table: ModuleType) -> None:
    ((_, outcome),) = table.try_all([kind])
    assert outcome.result == "refused"
    assert reason in outcome.reason
    assert "\n" not in outcome.reason


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_none_is_broken(table: ModuleType) -> None:
    rows = list(table.try_all())
    assert not [(name, outcome.reason) for name, outcome in rows if outcome.result == "broken"]
    assert sum(outcome.result in ("replayed", "whole forwards") for _, outcome in rows) > 90
