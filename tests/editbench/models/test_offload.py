"""Parameters that accelerate keeps elsewhere: brought in, written to, and dropped again."""

from collections.abc import Callable
from pathlib import Path

import accelerate
import accelerate.hooks as hooks
import pytest
import torch
from torch import Tensor, nn

from editbench.errors import ModelError
from editbench.models.offload import find_device, in_memory, updated_weights
from memit_core import MemitCoreError, capture, intervene

Offload = Callable[[nn.Module], object]


class Toy(nn.Module):
    """A linear map, a norm with a buffer, and a head that is tied to the map."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
            self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.inner[0].weight
        # As models of transformers say it.
        self.all_tied_weights_keys = {"head.weight": "inner.0.weight"}
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x))


X = torch.arange(8.0).reshape(2, 4)
UPDATES = {
    "inner.0.weight": torch.arange(16.0).reshape(4, 4),
    "inner.1.bias": torch.tensor([1.0, -2.0, 0.5, 3.0]),
}


def _to_ram(model: nn.Module) -> None:
    accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=True)


def _by_parent(model: nn.Module) -> None:
    """One hook sees to a module and all that is in it."""
    for part in (model.inner, model.head):
        state = {name: tensor.clone() for name, tensor in part.state_dict().items()}
        hook = hooks.AlignDevicesHook("cpu", offload=True, weights_map=state, place_submodules=True)
        hooks.add_hook_to_module(part, hook)


def _by_two_hooks(model: nn.Module) -> None:
    """accelerate joins hooks of one module in another one."""
    for part in (model.inner[0], model.inner[1], model.head):
        hooks.add_hook_to_module(part, hooks.ModelHook())
        hooks.add_hook_to_module(part, hooks.AlignDevicesHook("cpu", offload=True), append=True)


@pytest.fixture(params=["ram", "disk", "by parent", "by two hooks"])
def offload(request: pytest.FixtureRequest, tmp_path: Path) -> Offload:
    if request.param == "disk":
        return lambda model: accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    return {"ram": _to_ram, "by parent": _by_parent, "by two hooks": _by_two_hooks}[request.param]


def test_updates_reach_the_forward_and_leave_no_trace(offload: Offload, tmp_path: Path) -> None:
    plain, moved = Toy(), Toy()
    offload(moved)
    placeholders = dict(moved.named_parameters(remove_duplicate=False))
    assert all(each.is_meta for each in placeholders.values())
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.dat")}
    before = moved(X)
    assert torch.equal(before, plain(X))
    with updated_weights(plain, UPDATES), updated_weights(moved, UPDATES):
        expected = plain(X)
        assert not torch.equal(expected, before)
        assert torch.equal(moved(X), expected)
        assert torch.equal(moved.head.weight, plain.head.weight)
        assert moved.head.weight is moved.inner[0].weight
    assert all(each.is_meta for each in moved.parameters())
    assert torch.equal(moved(X), before)
    with pytest.raises(KeyError), updated_weights(moved, UPDATES):
        raise KeyError
    assert torch.equal(moved(X), before)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.dat")} == files


def test_updates_lie_one_on_the_other(offload: Offload) -> None:
    plain, moved = Toy(), Toy()
    offload(moved)
    before = moved(X)
    for model in (plain, moved):
        with updated_weights(model, UPDATES):
            once = model(X)
            with updated_weights(model, {"head.weight": UPDATES["inner.0.weight"]}):
                twice = model(X)
            assert torch.equal(model(X), once)
            assert not torch.equal(twice, once)
    assert torch.equal(moved(X), before)


def test_what_is_brought_in_can_be_trained(offload: Offload) -> None:
    plain, moved = Toy(), Toy()
    offload(moved)
    name = "inner.0.weight"
    with in_memory(moved, [name]) as brought_in:
        assert {name, "head.weight"} <= brought_in
        (gradient,) = torch.autograd.grad(moved(X).sum(), moved.get_parameter(name))
    (expected,) = torch.autograd.grad(plain(X).sum(), plain.get_parameter(name))
    assert torch.equal(gradient, expected)


def test_hooks_see_what_the_modules_see(offload: Offload) -> None:
    plain, moved = Toy(), Toy()
    offload(moved)
    seen = []
    for model in (plain, moved):
        with (
            intervene(model, {"inner.0": torch.neg}),
            capture(model, inputs_of=["head"], outputs_of=["inner.0"]) as captured,
        ):
            model(X)
        seen.append((captured.inputs["head"], captured.outputs["inner.0"]))
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one, other)


def test_a_forward_that_stops_midway_changes_nothing(offload: Offload) -> None:
    plain, moved = Toy(), Toy()
    offload(moved)
    with capture(moved, outputs_of=["inner.0"], stop=True):
        moved(X)
    with updated_weights(plain, UPDATES), updated_weights(moved, UPDATES):
        assert torch.equal(moved(X), plain(X))
    assert torch.equal(moved(X), plain(X))


def test_devices_are_those_of_the_forward(offload: Offload) -> None:
    moved = Toy()
    assert find_device(moved, "head.weight") == torch.device("cpu")
    offload(moved)
    assert find_device(moved, "head.weight") == torch.device("cpu")


def test_in_memory_leaves_plain_parameters_alone() -> None:
    model = Toy()
    before = model.head.weight
    with in_memory(model, ["head.weight"]) as brought_in:
        assert brought_in == frozenset()
        assert model.head.weight is before


def test_parameters_without_values_are_refused() -> None:
    model = Toy().to("meta")
    with (
        pytest.raises(ModelError, match=r"'inner\.1\.bias' has no values, got torch\.float32"),
        updated_weights(model, {"inner.1.bias": torch.ones(4)}),
    ):
        pytest.fail("the body must not run")


def test_tied_parameters_in_two_places_are_refused() -> None:
    model = Toy()
    hooks.add_hook_to_module(model.head, hooks.AlignDevicesHook("cpu", offload=True))
    with (
        pytest.raises(ModelError, match=r"in different places, got inner\.0\.weight, head"),
        updated_weights(model, UPDATES),
    ):
        pytest.fail("the body must not run")


def test_two_names_of_one_parameter_are_refused(offload: Offload) -> None:
    model = Toy()
    offload(model)
    update = UPDATES["inner.0.weight"]
    with (
        pytest.raises(MemitCoreError, match="two names are one tied parameter"),
        updated_weights(model, {"inner.0.weight": update, "head.weight": update}),
    ):
        pytest.fail("the body must not run")
    assert all(each.is_meta for each in model.parameters())
