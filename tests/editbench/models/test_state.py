"""A model knows what is on it: by the bits of its weights, and by what edits do besides."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload

from editbench.edits.card import EditCard
from editbench.edits.edit import Edit, NoEdit
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import ModelError
from editbench.models.editable import EditableModel, of_unedited
from editbench.testing import tiny_model, toy_cases
from memit_core import UpdateFactors, updated_weights

REQUESTS = [case.request for case in toy_cases(1)]


@pytest.fixture
def model() -> EditableModel:
    return tiny_model(n_layers=2)


@pytest.fixture
def edits(model: EditableModel) -> tuple[WeightEdit, WeightEdit]:
    """Two edits of one weight, large enough for their sum to be rounded."""
    return make_edit(model, 0), make_edit(model, 1)


def make_edit(model: EditableModel, seed: int) -> WeightEdit:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(size, 2, generator=generator) for size in (24, 96))
    return WeightEdit.build(
        model,
        editor=f"random-{seed}",
        config={},
        requests=REQUESTS,
        updates={weight_name(model): UpdateFactors(left, right)},
    )


def weight_name(model: EditableModel) -> str:
    return model.architecture.weight_name(model.architecture.mlp_projections[0])


def weight_of(model: EditableModel) -> torch.Tensor:
    return model.model.get_parameter(weight_name(model))


class HookEdit(Edit):
    """An edit of somebody else, that changes no weight."""

    def __init__(self, model: EditableModel) -> None:
        self.card = EditCard.of(model, editor="hook", config={}, requests=REQUESTS)

    @property
    def changes_something(self) -> bool:
        return True

    @contextmanager
    def applied(self, model: EditableModel) -> Iterator[None]:
        self.check_fits(model)
        module = model.model.get_submodule(model.architecture.mlp_projections[0])
        handle = module.register_forward_hook(lambda module, inputs, output: output + 1)
        try:
            yield
        finally:
            handle.remove()

    def save(self, path: Path) -> None:
        raise NotImplementedError


class AddingEdit(HookEdit):
    """An edit of somebody else, that writes to a weight by its own means."""

    @contextmanager
    def applied(self, model: EditableModel) -> Iterator[None]:
        before = weight_of(model).detach().clone()
        weight_of(model).data += 1
        try:
            yield
        finally:
            weight_of(model).data.copy_(before)


class HookedWeightEdit(WeightEdit):
    """A weight edit that somebody has added something to."""

    @contextmanager
    def applied(self, model: EditableModel) -> Iterator[None]:
        with super().applied(model), HookEdit(model).applied(model):
            yield


class TestState:
    def test_is_the_fingerprint_of_the_weights_as_they_are(self, model, edits) -> None:
        assert model.state == model.fingerprint == model.compute_fingerprint()
        with edits[0].applied(model):
            assert model.state == model.compute_fingerprint() != model.fingerprint
            assert model.edits_on == (edits[0].identity,)
        assert model.state == model.fingerprint
        assert model.edits_on == ()

    def test_is_known_also_if_nobody_asked_before_the_edit(self, edits) -> None:
        model = tiny_model(n_layers=2)
        with edits[0].applied(model):
            assert model.state != model.fingerprint == tiny_model(n_layers=2).fingerprint

    def test_is_another_one_for_each_edit_twice_and_in_another_order(self, model, edits) -> None:
        def state_under(*some: Edit) -> tuple[str, str]:
            with ExitStack() as stack:
                for edit in some:
                    stack.enter_context(edit.applied(model))
                return model.state, model.compute_fingerprint()

        first, second = edits
        found = [
            state_under(*some)
            for some in ([], [first], [second], [first, first], [first, second], [second, first])
        ]
        assert [state for state, _ in found] == [computed for _, computed in found]
        assert len(set(found)) == len(found)

    def test_sees_whatever_has_written_to_a_weight(self, model) -> None:
        _ = model.fingerprint
        states = {model.state}
        weight = weight_of(model)
        weight.data[0, 0] += 1  # behind torch's version counter
        states.add(model.state)
        with torch.no_grad():
            weight[[0, 1]] = weight[[1, 0]]
        states.add(model.state)
        weight.data = weight.data.clone() * -1
        states.add(model.state)
        model.model.get_parameter("transformer.h.0.ln_1.bias").data[3] = 1e-30
        states.add(model.state)
        model.model.half()
        states.add(model.state)
        assert len(states) == 6
        assert model.state == model.compute_fingerprint()

    @pytest.mark.parametrize("flipped", [[(0, 1), (0, 3)], [(0, 1), (5, 1)]])
    def test_sees_signs_that_cancel_in_a_sum(self, flipped) -> None:
        """The highest bit of a word counts nothing when two of them are added."""
        model = tiny_model(n_layers=2, d_model=64)
        before = model.state
        content = weight_of(model).data.view(-1, 2048)
        for place in flipped:
            content[place] *= -1
        assert model.state == model.compute_fingerprint() != before

    def test_says_what_is_on_besides_weights(self, model, edits) -> None:
        one, other = HookEdit(model), HookEdit(model)
        states = [model.state]
        with one.applied(model):
            states.append(model.state)
            assert model.compute_fingerprint() == model.fingerprint
            with edits[0].applied(model):
                states.append(model.state)
        assert model.state == states[0]
        with other.applied(model):
            states.append(model.state)
        assert len(set(states)) == len(states)

    def test_of_an_edit_that_changes_nothing_is_the_unedited(self, model) -> None:
        with NoEdit.of(model, REQUESTS).applied(model):
            assert model.state == model.fingerprint
            assert model.edits_on == ()

    def test_of_a_weight_edit_with_something_more_is_no_mere_weights(self, model, edits) -> None:
        edit = HookedWeightEdit(edits[0].updates, edits[0].card)
        with edit.applied(model):
            assert model.state not in (model.compute_fingerprint(), model.fingerprint)
            assert model.edits_on == (edit.identity,)
            assert edit.identity != edits[0].identity
        assert model.state == model.fingerprint


class TestTakingOff:
    def test_any_order_gives_back_the_bits(self, model, edits) -> None:
        first, second = edits
        with second.applied(model):
            alone = model.state
        one, other = first.applied(model), second.applied(model)
        one.__enter__()
        other.__enter__()
        one.__exit__(None, None, None)
        assert model.state == alone
        other.__exit__(None, None, None)
        assert model.state == model.fingerprint

    def test_any_order_with_an_edit_that_needs_the_other(self, model, edits) -> None:
        one = edits[0].applied(model)
        one.__enter__()
        needing = make_edit(model, 2)
        other = needing.applied(model)
        other.__enter__()
        with pytest.raises(Exception, match="with other edits on it"):
            one.__exit__(None, None, None)
        assert model.state == model.fingerprint
        other.__exit__(None, None, None)
        assert model.state == model.fingerprint

    def test_an_exception_passes_through_all_of_them(self, model, edits) -> None:
        with (
            pytest.raises(ZeroDivisionError),
            edits[0].applied(model),
            HookEdit(model).applied(model),
            edits[1].applied(model),
        ):
            raise ZeroDivisionError
        assert model.state == model.fingerprint
        assert model.edits_on == ()

    def test_what_could_not_be_put_on_is_not_on(self, model, edits) -> None:
        other = tiny_model(n_layers=2, seed=1)
        with pytest.raises(Exception, match="another model"), edits[0].applied(other):
            pass
        assert other.edits_on == ()
        assert other.state == other.fingerprint


class TestUnedited:
    @pytest.mark.parametrize("make_more", [HookEdit, AddingEdit, None])
    def test_has_the_exact_bits_and_so_has_the_edited_model_after(
        self, model, edits, make_more: Callable[[EditableModel], Edit] | None
    ) -> None:
        before = weight_of(model).detach().clone()
        more = edits[1] if make_more is None else make_more(model)
        with edits[0].applied(model), more.applied(model):
            edited, state = weight_of(model).detach().clone(), model.state
            with model.unedited("test"):
                assert torch.equal(weight_of(model), before)
                assert model.state == model.fingerprint
                assert model.edits_on == ()
            assert torch.equal(weight_of(model), edited)
            assert model.state == state
            assert model.edits_on == (edits[0].identity, more.identity)
        assert model.state == model.fingerprint

    def test_comes_off_and_on_also_when_the_body_raises(self, model, edits) -> None:
        with edits[0].applied(model):
            state = model.state
            with pytest.raises(ZeroDivisionError), model.unedited("test"):
                raise ZeroDivisionError
            assert model.state == state

    def test_leaves_what_was_written_on_top_of_an_edit(self, model, edits) -> None:
        with edits[0].applied(model):
            weight_of(model).data[0, 0] = 7.0
            state = model.state
            with model.unedited("test"):
                assert model.state == model.fingerprint
            assert model.state == state

    def test_is_refused_where_something_else_has_written_to_a_weight(self, model, edits) -> None:
        with edits[0].applied(model):
            bias = model.model.get_parameter("transformer.h.1.mlp.c_proj.bias")
            before = bias.detach().clone()
            bias.data += 1
            state = model.state
            with pytest.raises(ModelError, match="wrap the changed model"), model.unedited("test"):
                pytest.fail("this is not the unedited model")
            assert model.state == state
            bias.data.copy_(before)
        assert model.state == model.fingerprint

    def test_of_weights_that_wait_elsewhere_is_the_same(self, model, edits) -> None:
        with edits[0].applied(model):
            state = model.state
        cpu_offload(model.model, execution_device=torch.device("cpu"))
        assert model.state == model.fingerprint
        with edits[0].applied(model):
            assert model.state == state
            with model.unedited("test"):
                assert model.state == model.fingerprint
            assert model.state == state

    def test_function_of_it_gets_it(self, model, edits) -> None:
        @of_unedited("test")
        def look(model: EditableModel, number: int) -> tuple[str, int]:
            return model.state, number

        with edits[0].applied(model):
            assert look(model, 3) == (model.fingerprint, 3)

    def test_check_says_what_to_do(self, model, edits) -> None:
        model.check_unedited("test")
        with edits[0].applied(model):
            model.check_known("test")
            with pytest.raises(ModelError, match=r"^test: the weights of 'tiny'.* Take the e"):
                model.check_unedited("test")
        with (
            updated_weights(model.model, {weight_name(model): torch.ones(96, 24)}),
            pytest.raises(ModelError, match="No edit is on it"),
        ):
            model.check_known("test")
