"""What a block need not compute again where the state at one position alone is new.

In the block behind a restored state, queries, keys and values of all other positions are what they
were in the corrupted run; where attention and MLP stand side by side (GPT-J, GPT-NeoX), so is all
of the MLP's output. Which modules these are is not read off an architecture but found out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editbench.models.editable import EditableModel
from editbench.tracing.block_replay import BlockReplay


class UnmovedModules:
    """The modules of each block that see each position's own state alone; found once.

    Args:
        model: The model.
    """

    def __init__(self, model: EditableModel) -> None:
        self._model = model
        self._found: list[list[nn.Module]] | None = None

    @property
    def is_found(self) -> bool:
        """Whether `find` has looked for them."""
        return self._found is not None

    @property
    def by_layer(self) -> list[list[nn.Module]]:
        """The modules; none as long as `find` has not been called."""
        return self._found or [[] for _ in range(self._model.architecture.n_layers)]

    def find(self, replay: BlockReplay, n_positions: int) -> None:
        """Find them: what changes elsewhere when one state does?

        Args:
            replay: The blocks on a whole prompt.
            n_positions: The prompt's length.
        """
        if n_positions > 1:
            chance = torch.Generator().manual_seed(0)  # any states will do
            states = torch.randn(
                1, n_positions, self._model.architecture.d_model, generator=chance
            ).to(self._model.device, self._model.model.dtype)
            layers = range(self._model.architecture.n_layers)
            self._found = [self._find_in(layer, replay, states) for layer in layers]

    def _find_in(self, layer: int, replay: BlockReplay, states: Tensor) -> list[nn.Module]:
        moved = states.clone()
        moved[:, 0] = moved[:, 0].roll(1, dims=-1)  # no norm undoes that
        candidates = self._candidates(layer)
        before, after = (
            _record_inputs(candidates, layer, replay, each) for each in (states, moved)
        )
        return _outermost(
            [
                module
                for module, given in before.items()
                if module in after and torch.equal(given[:, 1:], after[module][:, 1:])
            ]
        )

    def _candidates(self, layer: int) -> list[nn.Module]:
        """The linear maps of a block, and its MLP where that is a module."""
        path = self._model.architecture.block(layer)
        block = self._model.model.get_submodule(path)
        maps: list[nn.Module] = [
            module for module in block.modules() if isinstance(module, nn.Linear | Conv1D)
        ]
        mlp = self._model.architecture.mlp_projections[layer].rpartition(".")[0]
        return maps if mlp == path else [self._model.model.get_submodule(mlp), *maps]


@contextmanager
def recorded(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Within the block, keep what modules put out."""
    outputs: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, args: object, output: Tensor) -> None:
        outputs[module] = output.clone()  # Falcon adds attention's output to the MLP's in place

    handles = [module.register_forward_hook(record) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def only_at(outputs: Mapping[nn.Module, Tensor], positions: Tensor) -> Iterator[None]:
    """Ask modules about one position of each row; elsewhere they put out what they did before.

    Args:
        outputs: By module, what it put out before, `[n_samples, n_positions, d]`; row i of a batch
            is a copy of sample ``i % n_samples``.
        positions: Which position, `[n_rows]`.
    """
    rows = torch.arange(len(positions), device=positions.device)

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][rows, positions][:, None], *args[1:])

    def put_back(module: nn.Module, args: object, output: Tensor) -> Tensor:
        before = outputs[module]
        n_lines = len(positions) // len(before)
        everywhere = before.expand(n_lines, *before.shape).flatten(0, 1).clone()
        everywhere[rows, positions] = output[:, 0]
        return everywhere

    handles = []
    try:
        for module in outputs:
            handles.append(module.register_forward_pre_hook(select))
            handles.append(module.register_forward_hook(put_back))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _record_inputs(
    modules: Sequence[nn.Module], layer: int, replay: BlockReplay, states: Tensor
) -> dict[nn.Module, Tensor]:
    """Inputs of the modules that run once, on rows of states and nothing else."""
    seen: dict[nn.Module, Tensor] = {}
    unfit: set[nn.Module] = set()

    def record(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        fits = len(args) == 1 and not kwargs and isinstance(output, Tensor)
        if not fits or module in seen or args[0].shape[:-1] != states.shape[:-1]:
            unfit.add(module)
        else:
            seen[module] = args[0].clone()

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        replay.run(layer, states)
    finally:
        for handle in handles:
            handle.remove()
    return {module: given for module, given in seen.items() if module not in unfit}


def _outermost(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Leave out modules that lie in another one of them."""
    inner = {id(part) for module in modules for part in module.modules() if part is not module}
    return [module for module in modules if id(module) not in inner]
