"""Hash of a model's weights, taken again at the price of reading them.

Hashing costs seconds for each gigabyte, and who wants to know whether a model is still what it was
wants to know often. So each tensor has a checksum beside its hash, at the speed of memory and on
its own device, and only what has another checksum than before is hashed again. Whatever wrote to
the weights is seen, also what goes around torch's version counters (`torch.Tensor.data`).
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from accelerate.utils import align_module_device
from einops import reduce
from torch import Tensor, nn
from transformers import PreTrainedModel

from editbench.files.tensor_files import view_bytes

_PIECE = 64 * 2**20  # bytes that are hashed at a time
_WORD = 8  # bytes
_ROW = 1024  # words that are summed up for a checksum
_ELSEWHERE = b""  # checksum of what accelerate has offloaded, which nobody writes to

# Fields of a configuration that do not change what the model computes.
_INESSENTIAL_FIELDS = frozenset(
    {
        "_name_or_path", "architectures", "auto_map", "bos_token_id", "dtype", "eos_token_id",
        "id2label", "label2id", "output_attentions", "output_hidden_states", "pad_token_id",
        "return_dict", "task_specific_params", "torch_dtype", "transformers_version", "use_cache",
    }
)  # fmt: skip

Place = tuple[str, str]  # a module's path, and the name of its parameter or buffer


class _Seen(NamedTuple):
    checksum: bytes
    digest: bytes


class WeightHash:
    """Hash of a model's weights and of what its configuration says about computing with them.

    It remembers of each tensor how it was at first, and how it was last. The model is given each
    time, since one that was copied to another device is still the same.
    """

    def __init__(self) -> None:
        self._first: dict[Place, _Seen] = {}
        self._last: dict[Place, _Seen] = {}
        self._now: dict[Place, bytes] = {}

    def look(self, model: PreTrainedModel, changed: Collection[str] | None = None) -> str:
        """`hash_weights`, by hashing only what has changed since it was looked at.

        Args:
            model: The model.
            changed: Names of the only parameters that can have changed since it was last looked
                at, of which tied ones go by their first name; None if that may be any.
        """
        if changed is None:
            self._now = dict.fromkeys(_own_tensors(model), b"")
        places = [place for place in self._now if changed is None or ".".join(place) in changed]
        checksums = {place: _checksum(_tensor_at(model, place)) for place in places}
        new = [place for place in places if self._recall(place, checksums[place]) is None]
        for place, digest in zip(new, _hash_tensors(model, new, self._first), strict=True):
            seen = self._last if place in self._first else self._first
            seen[place] = _Seen(checksums[place], digest)
        for place, checksum in checksums.items():
            self._now[place] = self._recall(place, checksum) or b""
        return _join(model, self._now.values())

    def copy_changed(self, model: PreTrainedModel) -> dict[Place, Tensor]:
        """Copies, on the CPU, of all weights that are not as they were at first."""
        tensors = {place: _tensor_at(model, place) for place in _own_tensors(model)}
        tensors = {place: tensor for place, tensor in tensors.items() if not tensor.is_meta}
        return {
            place: tensor.detach().to("cpu", copy=True)
            for place, tensor in tensors.items()
            if place not in self._first or self._first[place].checksum != _checksum(tensor)
        }

    def _recall(self, place: Place, checksum: bytes) -> bytes | None:
        """The hash of a tensor, if it was seen with this checksum."""
        seen = (self._first.get(place), self._last.get(place))
        return next((one.digest for one in seen if one and one.checksum == checksum), None)


def hash_weights(model: PreTrainedModel) -> str:
    """Hash all weights of a model as they are now."""
    return _join(model, _hash_tensors(model, _own_tensors(model)))


def write_weights(model: PreTrainedModel, copies: Mapping[Place, Tensor]) -> None:
    """Give weights the bits of `copies`."""
    for place, copy in copies.items():
        tensor = _tensor_at(model, place).detach()
        with torch.no_grad(), torch.inference_mode(tensor.is_inference()):
            tensor.copy_(copy)


def _join(model: PreTrainedModel, digests: Iterable[bytes]) -> str:
    config = {
        field: value
        for field, value in model.config.to_diff_dict().items()
        if field not in _INESSENTIAL_FIELDS
    }
    total = hashlib.blake2b(digest_size=16)
    total.update(json.dumps(config, sort_keys=True, default=str).encode())
    for digest in digests:
        total.update(digest)
    return total.hexdigest()


def _hash_tensors(
    model: PreTrainedModel, places: Sequence[Place], seen: Mapping[Place, _Seen] | None = None
) -> list[bytes]:
    """Hash tensors; one that has lost its values counts as it was `seen`."""
    # Bringing in what accelerate has offloaded is not safe to do from several threads.
    is_offloaded = any(parameter.is_meta for parameter in model.parameters())
    n_threads = 1 if is_offloaded else torch.get_num_threads()
    with ThreadPoolExecutor(max_workers=n_threads) as pool:
        return list(pool.map(partial(_hash_tensor, model, seen or {}), places))


def _own_tensors(model: PreTrainedModel) -> list[Place]:
    """Places of parameters and saved buffers in order, tied ones once."""
    places = []
    seen: set[int] = set()
    # Tied parameters are one object, except where offloading has replaced each by a placeholder.
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for path, module in model.named_modules():
        saved = {
            name: buffer
            for name, buffer in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set
        }
        for name, tensor in {**dict(module.named_parameters(recurse=False)), **saved}.items():
            is_placeholder_of_tied = tensor.is_meta and f"{path}.{name}" in tied
            if id(tensor) not in seen and not is_placeholder_of_tied:
                seen.add(id(tensor))
                places.append((path, name))
    return sorted(places)


def _tensor_at(model: nn.Module, place: Place) -> Tensor:
    tensor: Tensor = getattr(model.get_submodule(place[0]), place[1])
    return tensor


def _checksum(tensor: Tensor) -> bytes:
    """What tells a tensor's bits from others, unless somebody means to deceive.

    Its words are laid out in rows; the sums of all rows and of all columns are hashed. Changes stay
    unseen only where they cancel in a row and in a column at once.
    """
    if tensor.is_meta:
        return _ELSEWHERE
    content = view_bytes(tensor)
    if content.storage_offset() % _WORD:
        content = content.clone()
    n_laid_out = len(content) // (_WORD * _ROW) * (_WORD * _ROW)
    words = content[:n_laid_out].view(torch.int64)
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=32)
    sums = [
        reduce(words, f"(row column) -> {axis}", "sum", column=_ROW) for axis in ("row", "column")
    ]
    for part in (*sums, content[n_laid_out:]):
        digest.update(part.cpu().numpy().tobytes())
    return digest.digest()


def _hash_tensor(model: nn.Module, seen: Mapping[Place, _Seen], place: Place) -> bytes:
    path, name = place
    digest = hashlib.blake2b(digest_size=32)
    with align_module_device(model.get_submodule(path)):  # brings in what is offloaded
        tensor = _tensor_at(model, place).detach()
        if tensor.is_meta and place in seen:
            return seen[place].digest
        digest.update(f"{path}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            for piece in _to_host(view_bytes(tensor)):
                digest.update(piece.numpy().data)
    return digest.digest()


def _to_host(content: Tensor) -> Iterator[Tensor]:
    """A flat tensor in pieces on the CPU, each gone when the next one is there."""
    if content.device.type == "cpu":
        yield content
        return
    # One buffer, pinned where it can be: new memory for each gigabyte takes longer than to hash it.
    on_gpu = content.device.type == "cuda"
    buffer = torch.empty(min(_PIECE, len(content)), dtype=torch.uint8, pin_memory=on_gpu)
    for piece in content.split(_PIECE):
        yield buffer[: len(piece)].copy_(piece)
