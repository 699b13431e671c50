"""What work on a model may take of its devices' memory: every limit, and all that is counted.

Work asks here how much runs together, and where something large is kept. `editbench.models.batches`
cuts batches by what it is told.
"""

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from editbench.models.device_memory import (
    allocated_memory,
    free_memory,
    is_present,
    working_device,
)

if TYPE_CHECKING:
    from editbench.models.editable import EditableModel

_SHARE = 0.8  # of the free memory: some is lost between allocations
_LONGEST = 2_048  # tokens of the longest row that a token budget has to have room for

# Tokens that run together where memory allows. Without gradients more are no faster; with them,
# more fall out of a processor's cache. A GPU's matrix products are no faster for more, either, and
# memory is better left to others.
_CPU_TOKENS = 2_048
_ACCELERATOR_TOKENS = 65_536
_CPU_GRADIENT_TOKENS = 1_024
_ACCELERATOR_GRADIENT_TOKENS = 8_192
_ENOUGH_TOKENS = 2_048  # of text: with fewer, weights are read for too little work

# Logits are the largest thing in memory: 2^27 of them are 512 MiB in float32. A loss and its
# gradient make several copies. With a vocabulary of 256,000, 2^26 are 256 reads, and from about
# there on the head takes no less time a read for more of them.
_LOGITS = 2**27
_LOGITS_WITH_LOSS = 2**26
_LOGITS_IN_FLOAT32 = 2**24

_CACHE_BYTES = 2**32  # of keys and values that branches of a row see
# What keys and values of one batch of texts may take, whatever the token budget: small models are
# far quicker in large batches.
_TEXT_CACHE_BYTES = 2**27
_KEPT_BYTES = 2**30
# What copies of one block's keys and values may take that rows share, and which share of the room:
# that of the rows themselves is counted apart.
_COPIED_BYTES = 2**30
_COPIED_SHARE = 1 / 8


class MemoryBudget:
    """The memory that work on a model may take.

    Attributes:
        limit: Bytes that the model and the work on it may take of a device; None for all there are.
        kept_bytes: Bytes of states that all batches of a training together may keep.
    """

    kept_bytes = _KEPT_BYTES

    def __init__(self, model: "EditableModel", limit: int | None = None) -> None:
        # The model has its budget: with a ring of the two, its weights would stay in memory until
        # Python next looks for rings, beside those of the model that is loaded after it.
        self._model_of = weakref.ref(model)
        self.limit = limit

    @property
    def _model(self) -> "EditableModel":
        model = self._model_of()
        assert model is not None, "the budget of a model outlives it"
        return model

    def __reduce__(self) -> "tuple[type[MemoryBudget], tuple[EditableModel, int | None]]":
        return type(self), (self._model, self.limit)

    def narrow(self, limit: int | None) -> None:
        """Allow no more than `limit`; None, or more than is allowed, changes nothing."""
        if limit is not None:
            self.limit = limit if self.limit is None else min(limit, self.limit)

    @contextmanager
    def narrowed(self, limit: int | None) -> Iterator[None]:
        """`narrow` for the length of a ``with`` body."""
        before = self.limit
        self.narrow(limit)
        try:
            yield
        finally:
            self.limit = before

    # What there is

    @property
    def working_devices(self) -> tuple[torch.device, ...]:
        """Where the model's parts compute: all accelerators among these, or else the processor."""
        model = self._model
        if model.planned_device is not None:
            return (model.planned_device,)
        found = dict.fromkeys([model.device, *map(working_device, model.model.modules())])
        devices = [device for device in found if device is not None]
        return tuple(device for device in devices if device.type != "cpu") or tuple(devices)

    @property
    def weight_bytes(self) -> dict[torch.device, int]:
        """Bytes of the weights on each device; without weights, all are planned to be on one.

        What accelerate has offloaded is on no device.
        """
        model = self._model
        found = dict.fromkeys([model.device, *self.working_devices], 0)
        for parameter in model.model.parameters():
            device = parameter.device if model.planned_device is None else model.planned_device
            if device.type != "meta":
                found[device] = found.get(device, 0) + parameter.nbytes
        return found

    @property
    def room(self) -> float:
        """Bytes of the model's device that work on it may take; infinite if nobody knows.

        What is free, within `limit`, less the weights that are still to come there. Of a model on
        several devices it is that of the fullest. Of a device that this machine does not have
        nobody knows what is free.
        """
        free = min(self._free_on(device) for device in self.working_devices)
        return max(0, free - self._coming_bytes)

    def _free_on(self, device: torch.device) -> float:
        """Bytes that are free on a device, within `limit`."""
        free = free_memory(device) if is_present(device) else math.inf
        if self.limit is None:
            return free
        taken = allocated_memory(device)
        if taken is None:  # nobody counts; of what is there the weights are known
            is_planned = self._model.planned_device is not None
            taken = 0 if is_planned else self.weight_bytes.get(device, 0)
        return min(free, self.limit - taken)

    @property
    def _coming_bytes(self) -> int:
        """Bytes of the weights that work needs on its device, and that are not there.

        All that are planned to be there; or of those that accelerate has put elsewhere the largest
        module's, since it brings in one after the other.
        """
        model = self._model
        if model.planned_device is not None:
            return self.weight_bytes[model.planned_device]
        return max(_waiting_bytes(module, recurse=False) for module in model.model.modules())

    def waiting_bytes(self, first_layer: int) -> int:
        """Bytes of the blocks from `first_layer` on that accelerate has put elsewhere.

        A backward pass through these blocks has all of them on the device that computes.
        """
        model = self._model
        if model.planned_device is not None:
            return 0
        layers = range(first_layer, model.architecture.n_layers)
        blocks = (model.model.get_submodule(model.architecture.block(layer)) for layer in layers)
        return sum(_waiting_bytes(block, recurse=True) for block in blocks)

    # How much runs together

    def batch_bytes(self, beside: float = 0) -> float:
        """Bytes that one batch may take where something else takes `beside`.

        A share of the room, rounded down to two digits in binary: other programs come and go, and
        the same model on the same device should be worked on in the same batches.
        """
        room = self.room
        if room == math.inf:
            return math.inf
        share = max(0, int(_SHARE * room - beside))
        step = 1 << max(0, share.bit_length() - 2)
        return share // step * step

    @property
    def tokens(self) -> int:
        """Tokens, padding included, that one forward pass without gradients may hold."""
        return self.tokens_beside(0)

    def tokens_beside(self, beside: float, *, n_captured: int = 0) -> int:
        """The same where something else takes memory of the device, too.

        Args:
            beside: Bytes that are there, or are going to be.
            n_captured: Numbers of each token that are kept until the pass is over.
        """
        size = self._model.size
        longest = min(self._model.max_positions or _LONGEST, _LONGEST)
        bytes_per_token = size.working_bytes(longest) + size.n_cache_bytes
        bytes_per_token += n_captured * size.itemsize
        fitting = self.batch_bytes(beside) // bytes_per_token
        return int(max(1, min(self._choose(_CPU_TOKENS, _ACCELERATOR_TOKENS), fitting)))

    @property
    def gradient_tokens(self) -> int:
        """Tokens that run together with gradients, where memory allows; it does not look."""
        return self._choose(_CPU_GRADIENT_TOKENS, _ACCELERATOR_GRADIENT_TOKENS)

    def _choose(self, on_cpu: int, on_accelerator: int) -> int:
        return on_cpu if self._model.device.type == "cpu" else on_accelerator

    @property
    def reads(self) -> int:
        """Places at which one forward pass may read logits."""
        return _LOGITS // self._model.size.n_logits

    @property
    def reads_with_loss(self) -> int:
        """Places whose logits may be there at once, where only a loss of each is wanted."""
        return max(1, _LOGITS_WITH_LOSS // self._model.size.n_logits)

    @property
    def reads_in_float32(self) -> int:
        """Places whose logits may be widened at once."""
        return max(1, _LOGITS_IN_FLOAT32 // self._model.size.n_logits)

    @property
    def cached_tokens(self) -> int:
        """Tokens whose keys and values are kept for branches of rows."""
        return _CACHE_BYTES // self._model.size.n_cache_bytes

    @property
    def copied_tokens(self) -> int:
        """Tokens whose keys and values are copied in a block, for each row that shares them."""
        n_bytes = min(_COPIED_BYTES, self.batch_bytes() * _COPIED_SHARE)
        return int(n_bytes // self._model.size.n_copied_bytes)

    def text_tokens(self, token_budget: int) -> int:
        """Tokens whose keys and values are kept while texts are written."""
        return max(token_budget, _TEXT_CACHE_BYTES // self._model.size.n_cache_bytes)

    # Where large things are kept

    def place(self, n_bytes: float) -> torch.device:
        """Where to keep something large: the model's device if it has room for it, else the CPU."""
        fits = n_bytes <= _SHARE * self.room
        return self._model.device if fits else torch.device("cpu")

    def place_beside_text(self, n_bytes: float, *, n_captured: int) -> tuple[torch.device, int]:
        """The same of what text runs beside: only if it still does in batches that are worth it.

        Returns:
            The device, and how many tokens run at once.
        """
        alone, beside = (self.tokens_beside(taken, n_captured=n_captured) for taken in (0, n_bytes))
        is_cramped = beside < min(_ENOUGH_TOKENS, alone)
        device = torch.device("cpu") if is_cramped else self.place(n_bytes)
        return device, beside if device == self._model.device else alone


def _waiting_bytes(module: nn.Module, *, recurse: bool) -> int:
    return sum(parameter.nbytes for parameter in module.parameters(recurse) if parameter.is_meta)
