"""Target hidden states that overflow: said as what they are, and never kept."""

import sqlite3
from contextlib import closing

import pytest
import torch

from editbench.editors.base import Editor, Resources
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.rome import Rome, RomeConfig
from editbench.editors.targets import target_hidden
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.optimizer import FinishedTarget
from editbench.editors.targets.target_hidden import TargetHidden, optimize_target_hidden
from editbench.errors import EditError
from editbench.models.editable import EditableModel
from editbench.progress import report_nothing
from editbench.testing import tiny_model, toy_cases, toy_corpus

REQUESTS = [case.request for case in toy_cases(5)]
PREFIXES = ContextPrefixes((("",),))
SHARED = {"n_steps": 2, "second_moment_tokens": 2_000}
MEMIT = Memit(MemitConfig(critical_layers=(1,), preservation_weight=10, **SHARED))
ROME = Rome(RomeConfig(critical_layers=(1,), **SHARED))


@pytest.fixture
def model() -> EditableModel:
    """One whose last block overflows, behind the layers that are written to."""
    model = tiny_model(n_layers=3)
    with torch.no_grad():
        model.model.get_parameter("transformer.h.2.mlp.c_fc.weight").mul_(1e30)
    return model


def optimize(model: EditableModel, cache: TargetCache, **options: object) -> TargetHidden:
    return optimize_target_hidden(
        model,
        REQUESTS,
        layer=1,
        settings=MEMIT.config,
        prefixes=PREFIXES.flat,
        cache=cache,
        report_progress=report_nothing,
        **options,
    )


def test_overflow_is_counted_the_same_in_every_run(model, tmp_path) -> None:
    for _ in range(2):
        assert optimize(model, TargetCache(tmp_path)).finite.tolist() == [False] * len(REQUESTS)


def test_a_cache_that_holds_nan_already_is_read_past_it(model, tmp_path) -> None:
    cache = TargetCache(tmp_path)
    good = FinishedTarget(torch.ones(3), torch.zeros(3), 1.0, 2)
    cache.write({"good": good})
    blob = torch.full((3,), float("nan")).numpy().tobytes()
    with closing(sqlite3.connect(next(tmp_path.iterdir()))) as database, database:
        insert = "insert into checked_target_hidden values (?, ?, ?, ?, 2, '')"
        database.execute(insert, ("loss", good.state.numpy().tobytes(), blob, None))
        database.execute(insert, ("state", blob, blob, 1.0))
    with pytest.warns(UserWarning, match="2 of 3 entries are not what was written"):
        assert list(cache.read(["state", "loss", "good"])) == [2]


def test_one_edit_that_overflows_keeps_none_of_the_others_from_the_cache(tmp_path) -> None:
    cache = TargetCache(tmp_path)
    one = FinishedTarget(torch.ones(3), torch.zeros(3), 1.0, 2)
    infinite = FinishedTarget(torch.tensor([1.0, 1.0, float("inf")]), torch.zeros(3), 1.0, 2)
    outcomes = {
        "nan": FinishedTarget(torch.ones(3), torch.zeros(3), float("nan"), 2),
        "infinite": infinite,
        "good": one,
    }
    cache.write(outcomes)
    assert list(cache.read(list(outcomes))) == [2]


@pytest.mark.parametrize("editor", [MEMIT, ROME], ids=["memit", "rome"])
def test_editors_name_the_requests_and_how_to_mend_it(model, tmp_path, editor: Editor) -> None:
    resources = Resources(seed=0, cache=tmp_path, corpus=toy_corpus(), context_prefixes=PREFIXES)
    before = model.compute_fingerprint()
    for _ in range(2):  # the second run must not find in the cache what the first refused
        with pytest.raises(EditError, match=r"are not finite, got NaN or infinity") as caught:
            editor.edit(model, REQUESTS, resources)
        message = str(caught.value)
        assert message.startswith(f"{editor.name} on 'tiny': ")
        assert f"in float32 for '{REQUESTS[0].text}' → '{REQUESTS[0].target}'" in message
        assert message.endswith(". Lower the learning rate (learning_rate).")
        assert ("5 of 5" in message) == ("and 2 more" in message) == (editor is MEMIT)
    assert model.compute_fingerprint() == before


def test_float16_is_told_of_other_dtypes() -> None:
    model = tiny_model(n_layers=3)
    network = model.model.half()
    with torch.no_grad():
        weight = network.get_parameter("transformer.h.2.mlp.c_fc.weight")
        weight.copy_(weight.sign() * 6e4)  # finite, but no sum of them is
    half = EditableModel(network, model.tokens, name="half")
    resources = Resources(seed=0, corpus=toy_corpus(), context_prefixes=PREFIXES)
    with pytest.raises(EditError, match=r"in float16 .* --dtype float32 or bfloat16, or lower the"):
        MEMIT.edit(half, REQUESTS, resources)


def test_no_offset_starts_from_one_that_overflowed() -> None:
    """With a warm start one NaN would reach every later edit that has the same target."""
    finished = FinishedTarget(torch.ones(3), torch.zeros(3), 1.0, 2)
    overflowed = FinishedTarget(torch.full((3,), float("nan")), torch.zeros(3), 1.0, 2)
    same = [REQUESTS[0]] * 3
    start = target_hidden._mean_offsets(same, {0: finished, 1: overflowed}, [2])
    assert torch.equal(start, torch.ones(1, 3))
