"""Capturing and replacing activations, with no hook left behind."""

from collections import namedtuple
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from memit_core import MemitCoreError, ShapeError, capture, intervene

Pair = namedtuple("Pair", ["hidden", "extra"])


class Block(nn.Module):
    """Adds to the stream, and returns a tensor or some kind of sequence that starts with it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.inner = nn.Linear(3, 3)

    def forward(self, mask: Tensor | None = None, hidden_states: Tensor | None = None) -> object:
        assert hidden_states is not None
        hidden = hidden_states + self.inner(input=hidden_states)
        extra = torch.zeros(1)
        kinds = {"tensor": hidden, "tuple": (hidden, extra), "list": [hidden, extra]}
        return Pair(hidden, extra) if self.kind == "named" else kinds[self.kind]


class Toy(nn.Module):
    """Blocks called by keyword, one that changes its input in place, and one that is never run."""

    def __init__(self) -> None:
        super().__init__()
        kinds = ("tensor", "tuple", "list", "named")
        self.blocks = nn.ModuleList([Block(kind) for kind in kinds])
        self.first = nn.Linear(3, 3)
        self.relu = nn.ReLU(inplace=True)
        self.unused = nn.Linear(3, 3)
        self.outputs_seen: list[object] = []

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.relu(self.first(hidden))
        for block in self.blocks:
            output = block(mask=torch.ones(1, dtype=torch.bool), hidden_states=hidden)
            self.outputs_seen.append(output)
            hidden = output if isinstance(output, Tensor) else output[0]
        return hidden


NAMES = ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]


def count_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def model() -> Iterator[Toy]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        toy = Toy()
    yield toy
    assert count_hooks(toy) == 0, "a hook was left behind"


HIDDEN = torch.tensor([[0.5, -1.0, 2.0]])


# Capturing


@torch.no_grad()
def test_inputs_and_outputs_are_captured_whatever_the_calling_convention(model: Toy) -> None:
    expected = model(HIDDEN)
    with capture(model, inputs_of=[*NAMES, "blocks.0.inner"], outputs_of=NAMES) as captured:
        assert torch.equal(model(HIDDEN), expected)
    assert torch.equal(captured.inputs["blocks.0"], torch.relu(model.first(HIDDEN)))
    assert torch.equal(captured.inputs["blocks.0.inner"], captured.inputs["blocks.0"])
    for before, after in pairwise(NAMES):
        assert torch.equal(captured.outputs[before], captured.inputs[after])
    assert torch.equal(captured.outputs[NAMES[-1]], expected)


@torch.no_grad()
def test_copies_are_out_of_reach_of_operations_in_place(model: Toy) -> None:
    with capture(model, inputs_of=["relu"], outputs_of=["first"]) as captured:
        model(HIDDEN)
    expected = model.first(HIDDEN)
    assert (expected < 0).any()
    assert torch.equal(captured.outputs["first"], expected)
    assert torch.equal(captured.inputs["relu"], expected)


def test_gradients_flow_through_what_is_captured(model: Toy) -> None:
    with capture(model, outputs_of=["blocks.1"]) as captured:
        loss = model(HIDDEN).square().sum()
    (gradient,) = torch.autograd.grad(loss, captured.outputs["blocks.1"])
    assert gradient.any()


@torch.no_grad()
def test_last_call_is_kept(model: Toy) -> None:
    with capture(model, inputs_of=["first"]) as captured:
        model(HIDDEN)
        model(2 * HIDDEN)
    assert torch.equal(captured.inputs["first"], 2 * HIDDEN)


@torch.no_grad()
def test_shared_modules_answer_to_all_their_names(model: Toy) -> None:
    model.alias = model.first
    with capture(model, inputs_of=["alias", "first", "first"]) as captured:
        model(HIDDEN)
    assert torch.equal(captured.inputs["alias"], captured.inputs["first"])


def test_stop_ends_the_forward_once_everything_has_run(model: Toy) -> None:
    after = []
    for _ in range(2):
        with (
            capture(model, inputs_of=["blocks.2"], outputs_of=["first"], stop=True) as captured,
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16),
        ):
            model(HIDDEN)
            after.append("reached")
    assert not after
    assert set(captured.inputs) == {"blocks.2"}
    assert set(captured.outputs) == {"first"}
    assert len(model.outputs_seen) == 4, "blocks 0 and 1, twice"
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_stop_passes_through_handlers_of_ordinary_exceptions(model: Toy) -> None:
    def forward(hidden: Tensor) -> Tensor:
        try:
            return model.first(hidden)
        except Exception:  # pragma: no cover
            pytest.fail("the model saw the signal")

    model.forward = forward  # type: ignore[method-assign]
    with capture(model, inputs_of=["first"], stop=True) as captured:
        model(HIDDEN)
    assert torch.equal(captured.inputs["first"], HIDDEN)


def test_stop_ends_no_further_than_its_own_body(model: Toy) -> None:
    reached = []
    with capture(model, outputs_of=["blocks.3"]) as outer:
        with capture(model, outputs_of=["blocks.0"], stop=True) as inner:
            model(HIDDEN)
        reached.append("between")
        model(HIDDEN)
    assert reached
    assert torch.equal(inner.outputs["blocks.0"], model.outputs_seen[-4])  # type: ignore[arg-type]
    assert set(outer.outputs) == {"blocks.3"}

    with capture(model, outputs_of=["blocks.0"], stop=True) as outer:
        with capture(model, outputs_of=["blocks.1"], stop=True) as inner:
            model(HIDDEN)
        pytest.fail("the outer capture stops first")
    assert set(outer.outputs) == {"blocks.0"}
    assert not inner.outputs


def _run_and_raise(model: Toy, error: BaseException) -> None:
    model(HIDDEN)
    raise error


@pytest.mark.parametrize("stop", [False, True])
def test_other_exceptions_get_through_capture(model: Toy, stop: bool) -> None:
    error = KeyboardInterrupt()
    with (
        pytest.raises(KeyboardInterrupt) as raised,
        capture(model, outputs_of=["unused", "first"], stop=stop),
    ):
        _run_and_raise(model, error)
    assert raised.value is error


@pytest.mark.parametrize("stop", [False, True])
def test_module_that_never_ran_is_named(model: Toy, stop: bool) -> None:
    with (
        pytest.raises(MemitCoreError, match=r"^capture: a module never ran .* call of 'unused'\."),
        capture(model, inputs_of=["unused", "first"], outputs_of=["unused"], stop=stop),
    ):
        model(HIDDEN)


def test_misspelt_name_attaches_nothing_and_gets_the_nearest_one(model: Toy) -> None:
    message = (
        r"^capture: .* no such module, got 'blocks\.0\.iner'\. Did you mean 'blocks\.0\.inner'"
    )
    with (
        pytest.raises(MemitCoreError, match=message),
        capture(model, inputs_of=["first"], outputs_of=["blocks.0.iner"]),
    ):
        pytest.fail("the body must not run")
    with (
        pytest.raises(MemitCoreError, match=r"got 'xyz'\. See named_modules\(\)"),
        capture(model, inputs_of=["xyz"]),
    ):
        pytest.fail("the body must not run")
    with pytest.raises(MemitCoreError, match="got ''"), capture(model, outputs_of=[""]):
        pytest.fail("the body must not run")
    with (
        pytest.raises(MemitCoreError, match="must come in a list or tuple, got the string 'first'"),
        capture(model, inputs_of="first"),
    ):
        pytest.fail("the body must not run")


def test_capturing_nothing_is_harmless(model: Toy) -> None:
    with capture(model, stop=True) as captured:
        model(HIDDEN)
    assert not captured.inputs
    assert not captured.outputs


class Strange(nn.Module):
    def forward(self, *args: object, **kwargs: object) -> object:
        return {"hidden": HIDDEN}


def test_calls_without_tensors_are_refused() -> None:
    strange = Strange()
    model = nn.Module()
    model.add_module("strange", strange)
    with (
        pytest.raises(MemitCoreError, match=r"'strange' was called without a tensor, got 1 posit"),
        capture(model, inputs_of=["strange"]),
    ):
        strange(3, mask=HIDDEN)
    message = r"module 'strange' must return a tensor, or .*, got dict\. Choose a module inside"
    with (
        pytest.raises(MemitCoreError, match=f"^capture: {message}"),
        capture(model, outputs_of=["strange"]),
    ):
        strange()
    with (
        pytest.raises(MemitCoreError, match=f"^intervene: {message}"),
        intervene(model, {"strange": lambda hidden: hidden}),
    ):
        strange()
    assert count_hooks(model) == 0


# Intervening


@torch.no_grad()
@pytest.mark.parametrize("index", range(4))
def test_outputs_are_replaced_and_their_container_kept(model: Toy, index: int) -> None:
    name = NAMES[index]
    plain = model(HIDDEN)
    container = type(model.outputs_seen[index])
    model.outputs_seen.clear()
    wanted = torch.tensor([[7.0, 8.0, 9.0]])
    with intervene(model, {name: wanted.expand_as}):
        changed = model(HIDDEN)
    output = model.outputs_seen[index]
    assert type(output) is container
    if not isinstance(output, Tensor):
        assert torch.equal(output[0], wanted)  # type: ignore[index]
        assert torch.equal(output[1], torch.zeros(1))  # type: ignore[index]
    assert not torch.equal(changed, plain)
    assert torch.equal(model(HIDDEN), plain)


def test_every_call_is_replaced_and_gradients_flow(model: Toy) -> None:
    offset = torch.zeros(3, requires_grad=True)
    with intervene(model, {"blocks.1": lambda hidden: hidden + offset}):
        first, second = model(HIDDEN), model(HIDDEN)
    (gradient,) = torch.autograd.grad((first + second).sum(), offset)
    with intervene(model, {"blocks.1": lambda hidden: hidden + offset}):
        once = model(HIDDEN)
    torch.testing.assert_close(gradient, 2 * torch.autograd.grad(once.sum(), offset)[0])


@torch.no_grad()
def test_nested_hooks_run_in_the_order_they_were_attached(model: Toy) -> None:
    with (
        capture(model, outputs_of=["first"]) as before,
        intervene(model, {"first": lambda hidden: hidden + 1}),
        intervene(model, {"first": lambda hidden: 2 * hidden}),
        capture(model, outputs_of=["first"]) as after,
    ):
        model(HIDDEN)
    plain = model.first(HIDDEN)
    assert torch.equal(before.outputs["first"], plain)
    assert torch.equal(after.outputs["first"], 2 * (plain + 1))


@pytest.mark.parametrize(
    ("result", "got"), [(None, "NoneType"), (torch.ones(3), r"\[3\]"), (torch.ones(2, 3), "2, 3")]
)
def test_replacement_must_have_the_same_shape(model: Toy, result: object, got: str) -> None:
    with (
        pytest.raises(
            ShapeError, match=rf"the function for 'first' .*got .*{got}.*expected \[1, 3"
        ),
        intervene(model, {"first": lambda hidden: result}),  # type: ignore[arg-type, return-value]
    ):
        model(HIDDEN)


def test_intervention_that_never_ran_is_named(model: Toy) -> None:
    with (
        pytest.raises(MemitCoreError, match=r"^intervene: a module never ran .* of 'unused'\."),
        intervene(model, {"unused": torch.neg, "first": torch.neg}),
    ):
        model(HIDDEN)
    with pytest.raises(ZeroDivisionError), intervene(model, {"unused": torch.neg}):
        raise ZeroDivisionError


def test_misspelt_intervention_attaches_nothing(model: Toy) -> None:
    with (
        pytest.raises(
            MemitCoreError, match=r"^intervene: the model has no such module, got 'frist'"
        ),
        intervene(model, {"first": torch.neg, "frist": torch.neg}),
    ):
        pytest.fail("the body must not run")
