"""Which tensor of a GGUF file holds a parameter, and in which order.

llama.cpp turns some weights and changes the order of their rows. Transformers' reader knows the way
from a file to a parameter; the way back is found by sending numbered entries along it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedModel

from editbench.errors import ModelError
from editbench.models.architecture import weight_is_transposed
from editbench.models.gguf_file import GgufFile

# What llama.cpp calls families that it has no name of their own for.
_OTHER_NAMES = {"mistral": "llama", "gemma3_text": "gemma3"}


@dataclass(frozen=True, slots=True)
class GgufPlace:
    """Where llama.cpp keeps a parameter.

    Attributes:
        tensor: The tensor's name in a file.
        shape: Its shape there, in torch's order of axes.
        order: Of each entry of the parameter, in the shape that its module has it in, which entry
            of the file's tensor it is; None if the two are alike.
    """

    tensor: str
    shape: tuple[int, ...]
    order: Tensor | None

    def from_file(self, values: Tensor) -> Tensor:
        """Bring entries of the file's tensor into the parameter's order."""
        return values if self.order is None else values.flatten()[self.order]

    def to_file(self, values: Tensor) -> Tensor:
        """Bring entries of the parameter into the order of the file's tensor."""
        if self.order is None:
            return values
        found = torch.empty_like(values).flatten()
        found[self.order.flatten()] = values.flatten()
        return found.reshape(self.shape)


def family_of(model: PreTrainedModel) -> str:
    """What llama.cpp calls a model's family, where transformers calls it nearly the same."""
    kind = model.config.model_type
    return _OTHER_NAMES.get(kind, kind)


def map_names(model: PreTrainedModel, family: str) -> Mapping[str, str]:
    """The names that llama.cpp has for a model's parameters: its own to transformers'.

    Empty for families that transformers reads in a newer way.
    """
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    if family not in GGUF_CONFIG_MAPPING:
        return {}
    find_names: Callable[..., Mapping[str, str]] = get_gguf_hf_weights_map
    with made_once("get_tensor_name_map"):
        return find_names(model, _processor(family, model), model_type=family)


@contextmanager
def made_once(name: str) -> Iterator[None]:
    """Within the block, what gguf makes of the same arguments is made once.

    Args:
        name: ``get_tensor_name_map``, the names of a family: transformers asks for them at every
            module of a model, of which there are hundreds, and each time gguf makes all of them, of
            all blocks. Or ``GGUFReader``, a file's header with its vocabulary: configuration,
            tokenizer and weights are read one by one. Each takes seconds for a small model.
    """
    import gguf

    make = getattr(gguf, name)
    setattr(gguf, name, cache(make))
    try:
        yield
    finally:
        setattr(gguf, name, make)


def find_places(
    model: PreTrainedModel, parameters: Iterable[str], file: GgufFile | None = None
) -> dict[str, GgufPlace]:
    """Find where llama.cpp keeps parameters.

    Args:
        model: The model.
        parameters: Their names.
        file: A file of the model; without one, what llama.cpp's converter would write.

    Raises:
        ModelError: A parameter is in no tensor, in several, or not entry by entry.
    """
    family = family_of(model) if file is None else file.architecture
    known = map_names(model, family)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    places = {}
    for name in parameters:
        own = tied.get(name, name)
        names = [
            tensor
            for tensor, held in known.items()
            if tied.get(held, held) == own and (file is None or tensor in file.tensors)
        ]
        # A tied head has a name, and no tensor.
        names = [tensor for tensor in names if known[tensor] == name] or names
        if len(names) != 1:
            raise ModelError(
                f"GGUF: '{name}' is not one tensor of a file of the family '{family}', got "
                f"{', '.join(names) or 'none'}. Write a folder instead (--as model with a model "
                "that is one), and convert it with llama.cpp."
            )
        parameter = model.get_parameter(name)
        places[name] = _find_place(names[0], tuple(parameter.shape), family, model, file)
    return places


def split_order(place: GgufPlace, model: PreTrainedModel, parameter: str) -> tuple[Tensor, Tensor]:
    """Which outputs the rows of a file's matrix are, and which inputs its columns.

    Returns:
        Indices of outputs `[d_out]` and inputs `[d_in]` of the module that the parameter is of.

    Raises:
        ModelError: The file's matrix has not the outputs as its rows.
    """
    d_out, d_in = place.shape
    module = model.get_submodule(parameter.rpartition(".")[0])
    numbered = rearrange(
        torch.arange(d_out * d_in), "(outputs inputs) -> outputs inputs", outputs=d_out
    )
    there = place.to_file(numbered.T if weight_is_transposed(module) else numbered)
    rows, columns = there[:, 0] // d_in, there[0] % d_in
    if there.shape != (d_out, d_in) or not torch.equal(there, rows[:, None] * d_in + columns):
        raise ModelError(
            f"GGUF: the rows of '{place.tensor}' are not the outputs of '{parameter}'."
        )
    return rows, columns


def _processor(family: str, model: PreTrainedModel) -> Any:
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    processors: Mapping[str, Any] = TENSOR_PROCESSORS
    return processors.get(family, TensorProcessor)(config=model.config.to_dict())


def _find_place(
    tensor: str,
    wanted: tuple[int, ...],
    family: str,
    model: PreTrainedModel,
    file: GgufFile | None,
) -> GgufPlace:
    shapes = [wanted, wanted[::-1]] if file is None else [file.tensors[tensor].shape]
    for shape in shapes:
        numbered = np.arange(np.prod(shape)).reshape(shape)
        way = _processor(family, model).process
        found = way(weights=numbered, name=tensor, parsed_parameters={"tensors": {}}).weights
        if found.shape != wanted:
            continue
        if found is numbered:
            return GgufPlace(tensor, shape, None)
        order = torch.from_numpy(np.ascontiguousarray(found)).long()
        order = order - order.min()  # Gemma's norms are kept less one
        if torch.equal(order.flatten().sort().values, torch.arange(order.numel())):
            return GgufPlace(tensor, shape, order)
    raise ModelError(
        f"GGUF: '{tensor}' holds no plain copy of a parameter of shape {list(wanted)}, got "
        f"{list(shapes[0])} in a file of the family '{family}'. Write a folder instead, and "
        "convert it with llama.cpp."
    )
