"""Factors in the cache: the same edits, found again, and never more than three big matrices."""

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from editbench.editors.base import Resources
from editbench.editors.closed_form import solving
from editbench.editors.closed_form.dials import Dials
from editbench.editors.closed_form.solving import PreservedValues
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.rome import Rome, RomeConfig
from editbench.errors import SecondMomentError
from editbench.second_moments import factors as second_moment_factors
from editbench.second_moments.factors import obtain_factor
from editbench.second_moments.obtaining import LayerMoments
from editbench.testing import tiny_model, toy_cases, toy_corpus
from memit_core import FactorizedSecondMoment, Preservation, UpdateFactors, solve_edits

ORIGIN = {"model_fingerprint": "m", "corpus_fingerprint": "c", "n_tokens": 9}
REQUESTS = [case.request for case in toy_cases(3)]
CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moments_of(tokens: torch.Tensor, **origin: object) -> LayerMoments:
    moment = tokens.T @ tokens / len(tokens)
    return LayerMoments({3: lambda: moment}, {**ORIGIN, **origin})


def refuse_to_factorize(*_: object) -> None:
    pytest.fail("factorized again")


def dense(update: UpdateFactors | torch.Tensor) -> torch.Tensor:
    return update.dense() if isinstance(update, UpdateFactors) else update


def factor_of(found: Preservation | None) -> torch.Tensor:
    assert found is not None
    assert isinstance(found.second_moment, FactorizedSecondMoment)
    return found.second_moment.factor


def solve_layer(
    keys: torch.Tensor,
    residuals: torch.Tensor,
    moments: LayerMoments,
    weight: float,
    cache: Path | None,
) -> torch.Tensor:
    preserved = PreservedValues(moments, Dials(weight=weight), cache)
    return dense(preserved.solve(3, keys, residuals))


@pytest.mark.parametrize("n_edits", [2, 9])
def test_cached_factors_give_the_same_update(tmp_path, monkeypatch, n_edits: int) -> None:
    moments = moments_of(draw(100, 12))
    keys, residuals = draw(n_edits, 12, seed=1), draw(n_edits, 5, seed=2)
    expected = solve_layer(keys, residuals, moments, 2.0, None)
    first = solve_layer(keys, residuals, moments, 2.0, tmp_path)
    monkeypatch.setattr(FactorizedSecondMoment, "__init__", refuse_to_factorize)
    second = solve_layer(keys, residuals, moments, 2.0, tmp_path)
    for found in (first, second):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    # Many edits are solved without factors, at the same cost, and leave no file.
    assert len(list(tmp_path.rglob("*.safetensors"))) == (1 if n_edits == 2 else 0)


def test_exact_updates_say_nothing_about_dimensions_that_text_never_uses(tmp_path) -> None:
    tokens = draw(100, 12)
    tokens[:, [2, 7]] = 0
    keys, residuals = draw(3, 12, seed=1), draw(3, 5, seed=2)  # the keys use them
    factor = second_moment_factors.require_factor(moments_of(tokens), 3, tmp_path, CPU)
    update = dense(solve_edits(keys, residuals, factor, slack=0))
    torch.testing.assert_close(keys @ update.T, residuals)
    assert not update[:, [2, 7]].any()
    live = factor.basis
    assert live is not None
    # Of all that map the keys so, it moves ordinary values least: Δ C is spanned by the keys.
    moment = (tokens.T @ tokens / len(tokens))[live][:, live]
    rest = torch.linalg.lstsq(keys[:, live].T, (update[:, live] @ moment).T)
    fitted = keys[:, live].T @ rest.solution
    torch.testing.assert_close(fitted, (update[:, live] @ moment).T)


def test_updates_of_many_edits_are_dense() -> None:
    moments = moments_of(draw(100, 12))
    for n_edits, is_factored in ((4, True), (5, False), (40, False)):
        preserved = PreservedValues(moments, Dials(weight=2.0), None)
        update = preserved.solve(3, draw(n_edits, 12, seed=1), draw(n_edits, 5, seed=2))
        assert isinstance(update, UpdateFactors) == is_factored


@pytest.mark.parametrize("n_edits", [2, 30])
def test_dimensions_that_nothing_uses_stay_untouched(tmp_path, n_edits: int) -> None:
    tokens, keys = draw(100, 12), draw(n_edits, 12, seed=1)
    tokens[:, [3, 7]] = 0
    keys[:, [3, 7]] = 0
    residuals = draw(n_edits, 5, seed=2)
    rest = [place for place in range(12) if place not in (3, 7)]
    expected = solve_layer(keys[:, rest], residuals, moments_of(tokens[:, rest]), 2.0, None)
    for cache in (None, tmp_path, tmp_path):
        found = solve_layer(keys, residuals, moments_of(tokens), 2.0, cache)
        torch.testing.assert_close(found[:, rest], expected, rtol=1e-10, atol=1e-12)
        assert not found[:, [3, 7]].any()


def test_an_edit_may_use_what_ordinary_text_does_not(tmp_path) -> None:
    tokens, keys = draw(100, 12), draw(2, 12, seed=1)
    tokens[:, 3] = 0
    residuals = draw(2, 5, seed=2)
    moments = moments_of(tokens)
    assert obtain_factor(moments, 3, tmp_path, CPU) is not None
    found = solve_layer(keys, residuals, moments, 2.0, tmp_path)
    system = 2.0 * moments[3] + keys.T @ keys
    torch.testing.assert_close(found @ system, residuals.T @ keys)
    assert found[:, 3].any()


def test_singular_moments_are_tried_once(tmp_path, monkeypatch) -> None:
    moments = moments_of(draw(5, 12))
    assert obtain_factor(moments, 3, tmp_path, CPU) is None
    monkeypatch.setattr(FactorizedSecondMoment, "__init__", refuse_to_factorize)
    assert obtain_factor(moments, 3, tmp_path, CPU) is None


def files_of(cache: Path) -> list[Path]:
    return list((cache / "factors").glob("*.safetensors"))


def test_factors_are_of_one_second_moment(tmp_path) -> None:
    """Another origin, layer or diagonal is another entry."""
    tokens = draw(100, 12)
    obtain_factor(moments_of(tokens), 3, tmp_path, CPU)
    obtain_factor(moments_of(tokens, corpus_fingerprint="other"), 3, tmp_path, CPU)
    obtain_factor(moments_of(draw(100, 12, seed=1)), 3, tmp_path, CPU)
    assert len(files_of(tmp_path)) == 3


@pytest.mark.parametrize("origin", [None, {"corpus": "golden"}])
def test_without_an_origin_factors_are_of_all_bits(
    tmp_path, origin: dict[str, str] | None, monkeypatch
) -> None:
    moment = moments_of(draw(100, 12))[3]
    other = moment.clone()
    other[0, 1] = other[1, 0] = other[0, 1] / 2  # the diagonal is the same
    first, second = (
        obtain_factor(LayerMoments({3: lambda each=each: each}, origin), 3, tmp_path, CPU)
        for each in (moment, other)
    )
    assert len(files_of(tmp_path)) == 2
    monkeypatch.setattr(FactorizedSecondMoment, "__init__", refuse_to_factorize)
    for each, expected in ((moment, first), (other, second)):
        found = obtain_factor(LayerMoments({3: lambda each=each: each}, origin), 3, tmp_path, CPU)
        assert torch.equal(factor_of(found), factor_of(expected))


def test_who_wants_the_same_factors_waits_for_them(tmp_path, monkeypatch) -> None:
    moments = moments_of(draw(100, 12))
    n_factorized = 0
    factorize = FactorizedSecondMoment.__init__

    def count(self: FactorizedSecondMoment, moment: torch.Tensor) -> None:
        nonlocal n_factorized
        n_factorized += 1
        time.sleep(0.3)
        factorize(self, moment)

    monkeypatch.setattr(FactorizedSecondMoment, "__init__", count)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: obtain_factor(moments, 3, tmp_path, CPU), range(3)))
    assert n_factorized == 1
    assert all(each is not None for each in found)


def test_damaged_factors_are_made_anew(tmp_path) -> None:
    moments = moments_of(draw(100, 12))
    expected = obtain_factor(moments, 3, tmp_path, CPU)
    (path,) = files_of(tmp_path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.warns(UserWarning, match="factors of second moments: .* computed anew"):
        found = obtain_factor(moments, 3, tmp_path, CPU)
    assert torch.equal(factor_of(found), factor_of(expected))


def test_a_cache_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "factors").write_text("in the way")
    with pytest.raises(SecondMomentError, match=r"layer 3: cannot keep factors: .*--no-cache"):
        obtain_factor(moments_of(draw(100, 12)), 3, tmp_path, CPU)


CONFIG = MemitConfig(
    critical_layers=(0, 1, 2, 3),
    preservation_weight=50,
    n_steps=2,
    learning_rate=0.2,
    learning_rate_unit="relative",
    second_moment_tokens=4_000,
    n_context_prefixes=1,
    context_prefix_length=2,
)
ROME = RomeConfig.parse(
    {**Rome.derive_defaults(tiny_model()), "second_moment_tokens": 4_000, "n_steps": 3}, "test"
)


class CountMatrices(TorchDispatchMode):
    """Counts the float64 memory of d_key × d_key that is held at any time."""

    def __init__(self, d_key: int) -> None:
        super().__init__()
        self._size = 8 * d_key**2
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        is_new = not any(each.alias_info for each in func._schema.returns)
        if is_new and isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            held = [each for each in gc.get_objects() if type(each) is torch.Tensor]
            matrices = [each for each in (result, *held) if self._is_matrix(each)]
            places = {each.untyped_storage().data_ptr() for each in matrices}
            self.most = max(self.most, len(places))
        return result

    def _is_matrix(self, tensor: torch.Tensor) -> bool:
        if tensor.dtype != torch.float64 or tensor.is_meta:
            return False
        return tensor.untyped_storage().nbytes() >= self._size


@pytest.mark.parametrize("factors", ["found", "made", "none"])
def test_insertion_holds_at_most_three_matrices(tmp_path, factors: str, monkeypatch) -> None:
    """C of four layers would be four; they are read one after another."""
    model = tiny_model()
    resources = Resources(seed=0, corpus=toy_corpus(), cache=tmp_path)
    Memit(CONFIG).edit(model, REQUESTS[:1], resources)  # collects
    if factors == "made":
        for path in files_of(tmp_path):
            path.unlink()
    if factors == "none":
        monkeypatch.setattr(solving, "obtain_factor", lambda *_: None)
    counted = CountMatrices(model.d_key(0))

    plain = PreservedValues.solve

    def solve_and_count(*arguments: object) -> object:
        with counted:
            return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(PreservedValues, "solve", solve_and_count)
    gc.freeze()  # leaves fewer objects to look through
    try:
        Memit(CONFIG).edit(model, REQUESTS[:1], resources)
    finally:
        gc.unfreeze()
    assert 1 <= counted.most <= 3


@pytest.mark.parametrize("is_made", [True, False])
def test_rome_holds_at_most_three_matrices(tmp_path, is_made: bool, monkeypatch) -> None:
    model = tiny_model()
    editor = Rome(ROME)
    resources = Resources(seed=0, corpus=toy_corpus(), cache=tmp_path)
    editor.edit(model, REQUESTS[:1], resources)  # collects
    if is_made:
        for path in files_of(tmp_path):
            path.unlink()
    counted = CountMatrices(model.d_key(0))
    gc.freeze()
    try:
        with counted:
            editor.edit(model, REQUESTS[:2], resources)
    finally:
        gc.unfreeze()
    assert 1 <= counted.most <= 3


def test_editors_use_cached_factors(tmp_path, monkeypatch) -> None:
    model = tiny_model()
    with_cache = Resources(seed=0, corpus=toy_corpus(), cache=tmp_path)
    for editor in (Memit(CONFIG), Rome(ROME)):
        plain = editor.edit(model, REQUESTS, Resources(seed=0, corpus=toy_corpus()))
        first = editor.edit(model, REQUESTS, with_cache)
        with monkeypatch.context() as later:
            later.setattr(FactorizedSecondMoment, "__init__", refuse_to_factorize)
            again = editor.edit(model, REQUESTS, with_cache)
        for name, update in plain.updates.items():
            for other in (first, again):
                torch.testing.assert_close(
                    dense(other.updates[name]), dense(update), rtol=1e-4, atol=1e-7
                )
    assert len(files_of(tmp_path)) == 5
