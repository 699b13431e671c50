"""Logits of target positions in slices: the same numbers, with a slice in memory instead of all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.settings import TargetSettings
from editbench.editors.targets.target_hidden import TargetHidden, optimize_target_hidden
from editbench.models import memory_budget
from editbench.models.editable import EditableModel
from editbench.progress import report_nothing
from editbench.replay.offset_forward import FullForward, OffsetRow, OffsetSite
from editbench.replay.suffix_replay import SuffixReplay
from editbench.requests import EditRequest

N_ROWS, N_READS, SLICE = 9, 27, 4  # 27 reads are seven slices, the last one of three
REQUESTS = [
    EditRequest("0", "Zoë Brandt", "{} plays the sport of", "tennis"),
    EditRequest("1", "Danielle Darrieux", "The mother tongue of {} is", "French"),
    EditRequest("2", "北京", "{} is the capital of", "Spain"),
]
SETTINGS = TargetSettings(
    n_steps=8, learning_rate=0.1, learning_rate_unit="relative", stop_loss=0, kl_weight=0.1
)
OptimizeSliced = Callable[[int | None], TargetHidden]


@pytest.fixture(params=["gpt2", "gemma2", "llama"])
def model(request: pytest.FixtureRequest, families, make_network, tokenizers) -> EditableModel:
    """A head that is the embedding, one with capped logits, and one of its own."""
    config = families[request.param][0]
    has_cap = getattr(config, "final_logit_softcapping", None) is not None
    assert (request.param == "gemma2") == has_cap
    assert (request.param == "llama") != config.tie_word_embeddings
    return EditableModel(make_network(config), tokenizers["bos"], name=request.param)


@pytest.fixture
def set_slice(monkeypatch: pytest.MonkeyPatch) -> Callable[[EditableModel, int], None]:
    def set_to(model: EditableModel, n_reads: int) -> None:
        monkeypatch.setattr(memory_budget, "_LOGITS_WITH_LOSS", n_reads * model.n_logits)

    return set_to


def make_rows() -> list[OffsetRow]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 300, (N_ROWS, 9), generator=generator).tolist()
    return [OffsetRow(tuple(row), 4, (5, 6, 8)) for row in ids]


class Targets:
    """−log p of one token for each read; notes how many reads it was asked about at once."""

    def __init__(self) -> None:
        self.ids = torch.randint(3, 300, (N_READS,), generator=torch.Generator().manual_seed(1))
        self.asked: list[slice] = []

    def loss(self, logits: torch.Tensor, reads: slice) -> torch.Tensor:
        self.asked.append(reads)
        return functional.cross_entropy(logits.float(), self.ids[reads], reduction="none")


def measure(
    forward: FullForward | SuffixReplay, targets: Targets, n_losses: int
) -> list[torch.Tensor]:
    """Losses, other logits, and the gradient of a sum of both in which every read weighs more."""
    d_model = forward.model.architecture.d_model
    offsets = torch.randn(N_ROWS, d_model, generator=torch.Generator().manual_seed(2))
    offsets.requires_grad_()
    losses, others = forward.losses(offsets, n_losses, targets.loss)
    total = (losses * torch.linspace(1, 2, n_losses)).sum() + others.log_softmax(-1)[:, 7].sum()
    return [losses.detach(), others.detach(), torch.autograd.grad(total, offsets)[0]]


@pytest.mark.parametrize("n_losses", [N_READS, 20, SLICE, 0])
def test_slices_give_the_same_losses_and_gradients(model, set_slice, n_losses: int) -> None:
    site = OffsetSite.block_output(model, 1)
    replay = SuffixReplay(model, site, make_rows())
    whole, sliced, full = Targets(), Targets(), Targets()
    expected = measure(replay, whole, n_losses)
    assert whole.asked == [slice(0, n_losses)]
    oracle = measure(FullForward(model, site, make_rows()), full, n_losses)
    set_slice(model, SLICE)
    found = measure(replay, sliced, n_losses)
    stops = [min(start + SLICE, n_losses) for start in range(0, n_losses, SLICE)] or [0]
    assert [reads.stop for reads in sliced.asked] == stops
    for one, same, true in zip(found, expected, oracle, strict=True):
        torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one, true, rtol=1e-4, atol=1e-5)


def test_slices_without_a_gradient(model, set_slice) -> None:
    replay = SuffixReplay(model, OffsetSite.block_output(model, 1), make_rows())
    offsets = torch.full((N_ROWS, model.architecture.d_model), 0.3, requires_grad=True)
    with torch.no_grad():
        expected, _ = replay.losses(offsets, N_READS, Targets().loss)
        set_slice(model, SLICE)
        found, _ = replay.losses(offsets, N_READS, Targets().loss)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class LogitWatch(TorchDispatchMode):
    """Counts, after every operation, how many rows as wide as the vocabulary are in memory."""

    def __init__(self, model: EditableModel) -> None:
        super().__init__()
        self._n_logits = model.n_logits
        weights = model.model.parameters()
        self._weights = {weight.untyped_storage()._cdata for weight in weights}
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self.n_rows = 0
        self.widest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.shape[-1:] == (self._n_logits,):
                storage = leaf.untyped_storage()
                if storage._cdata in self._weights:
                    continue
                n_rows = storage.nbytes() // (leaf.itemsize * self._n_logits)
                self._seen[storage._cdata] = (StorageWeakRef(storage), n_rows)
        self._seen = {key: one for key, one in self._seen.items() if not one[0].expired()}
        self.n_rows = max(self.n_rows, sum(n_rows for _, n_rows in self._seen.values()))
        self.widest = max([self.widest, *(n_rows for _, n_rows in self._seen.values())])
        return result


def test_no_more_than_a_slice_is_in_memory(families, make_network, tokenizers, set_slice) -> None:
    """In the forward and in the backward pass, copies and gradients of logits included."""
    model = EditableModel(make_network(families["gemma2"][0]), tokenizers["bos"], name="gemma2")
    for parameter in model.model.parameters():
        parameter.requires_grad_(False)
    replay = SuffixReplay(model, OffsetSite.block_output(model, 1), make_rows())
    widths: list[int] = []
    head = model.model.get_submodule(model.architecture.head)
    head.register_forward_hook(lambda _, __, logits: widths.append(len(logits)))

    with LogitWatch(model) as whole:
        measure(replay, Targets(), N_READS)
    assert widths == [N_READS]
    assert whole.widest == N_READS
    assert whole.n_rows >= 3 * N_READS

    widths.clear()
    set_slice(model, SLICE)
    with LogitWatch(model) as sliced:
        measure(replay, Targets(), N_READS)
    assert widths == [4] * 6 + [3]  # and none again in the backward pass
    assert sliced.widest == SLICE
    assert sliced.n_rows * N_READS <= whole.n_rows * SLICE


@pytest.fixture(params=["together", "apart"])
def optimize(request: pytest.FixtureRequest, model, set_slice) -> OptimizeSliced:
    """Optimizes z, with the KL term's rows in one batch with the prompts or in one of their own."""
    settings = SETTINGS
    if request.param == "apart":
        earlier = model.architecture.n_layers - 2
        settings = SETTINGS.model_copy(update={"loss_layer": earlier})

    def run(n_reads: int | None) -> TargetHidden:
        if n_reads is not None:
            set_slice(model, n_reads)
        return optimize_target_hidden(
            model,
            REQUESTS,
            layer=1,
            settings=settings,
            prefixes=("", "It is known. "),
            cache=TargetCache(None),
            report_progress=report_nothing,
        )

    return run


def test_slices_give_the_same_target_hidden_states(model, optimize: OptimizeSliced) -> None:
    whole = optimize(None)
    runs: list[int] = []
    head = model.model.get_submodule(model.architecture.head)
    head.register_forward_hook(lambda *_: runs.append(1))
    sliced = optimize(2)
    assert len(runs) > 3 * SETTINGS.n_steps
    assert sliced.replay_failure is None
    assert (whole.states - whole.initial).norm() > 0.1 * whole.initial.norm()
    torch.testing.assert_close(sliced.states, whole.states, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sliced.losses, whole.losses, rtol=1e-5, atol=1e-5)
