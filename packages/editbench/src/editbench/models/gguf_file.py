"""What a GGUF file holds, read off its header: llama.cpp's format of models.

Tensors are not touched. Of metadata, vocabularies and merges are counted and not read: reading
them takes seconds, and the tokenizer's own reader does it.
"""

import mmap
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from editbench.errors import ModelError
from editbench.files.seals import checksum_file

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a file.

    Attributes:
        shape: Its axes in the order of torch: the last one lies together.
        kind: How its numbers are stored, such as ``F16`` or ``Q4_K``.
        begin: Where it begins in the file, in bytes.
        n_bytes: Its size there.
    """

    shape: tuple[int, ...]
    kind: str
    begin: int
    n_bytes: int


@dataclass(frozen=True)
class GgufFile:
    """The header of a file.

    Attributes:
        path: The file.
        metadata: Its fields; a list of strings is given as its length.
        tensors: Its tensors by name, in their order.
        fields_end: Where the fields end and the list of tensors begins, in bytes.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    fields_end: int

    @classmethod
    def read(cls, path: Path, *, name: str) -> "GgufFile":
        """Read the header of a file, and see that all of its tensors are there.

        Args:
            path: The file.
            name: What the user called the model.

        Raises:
            ModelError: It is no GGUF file, of an unknown version, cut, damaged, or one part of
                several; or the package ``gguf`` is not installed.
        """
        _require_package(name)
        try:
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as seen,
            ):
                found = cls(path, *_Reader(seen, name).read())
                n_bytes = len(seen)
        except (struct.error, UnicodeDecodeError, LookupError, OverflowError) as error:
            raise ModelError(
                f"model '{name}': the header of the GGUF file is cut or damaged, got {error}. Copy "
                "the file again."
            ) from error
        except (OSError, ValueError) as error:
            raise ModelError(f"model '{name}': the file cannot be read, got {error}.") from error
        needed = max((one.begin + one.n_bytes for one in found.tensors.values()), default=0)
        if needed > n_bytes:
            raise ModelError(
                f"model '{name}': the GGUF file is cut, got {n_bytes:,} bytes; expected "
                f"{needed:,}. Copy it again."
            )
        found._refuse_parts(name)
        return found

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the model's family."""
        return str(self.metadata["general.architecture"])

    @property
    def alignment(self) -> int:
        """What the places of tensors are multiples of, in bytes."""
        return int(self.metadata.get("general.alignment", _ALIGNMENT))

    def get(self, field: str) -> Any:
        """A field of the architecture's own, such as ``attention.key_length``; None without it."""
        return self.metadata.get(f"{self.architecture}.{field}")

    @property
    def kinds(self) -> dict[str, int]:
        """How many tensors are stored in which way, the most frequent first."""
        return dict(Counter(one.kind for one in self.tensors.values()).most_common())

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the whole file, hexadecimal."""
        return checksum_file(self.path)

    def describe(self) -> dict[str, Any]:
        """Which file it is, as plain JSON values: for cards and provenance."""
        return {"file": self.path.name, "sha256": self.sha256, "quantization": self.kinds}

    def __getstate__(self) -> dict[str, Any]:
        """Know the sum where the file is not."""
        _ = self.sha256
        return vars(self)

    def _refuse_parts(self, name: str) -> None:
        part = _PART.search(self.path.name)
        n_parts = int(part[1]) if part else self.metadata.get("split.count", 0)
        if n_parts > 1:
            raise ModelError(
                f"model '{name}': the file is one of {n_parts} parts, got '{self.path.name}', and "
                "transformers reads whole files only. Join them first, with llama.cpp: "
                "llama-gguf-split --merge FIRST-PART WHOLE.gguf"
            )


def is_gguf(path: Path) -> bool:
    """Whether a path is a file that begins as GGUF does, or one that is called so."""
    if not path.is_file():
        return False
    if path.suffix == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


class _Reader:
    """Reads a header from its beginning to its end."""

    def __init__(self, content: mmap.mmap, name: str) -> None:
        self._content = content
        self._name = name
        self._place = 0

    def read(self) -> tuple[dict[str, Any], dict[str, GgufTensor], int]:
        """Metadata, tensors, and where the former end."""
        if (magic := self._content[: len(_MAGIC)]) != _MAGIC:
            raise ModelError(
                f"model '{self._name}': this is no GGUF file, got one that begins with {magic!r}; "
                f"expected {_MAGIC!r}. Give a GGUF file, or the folder that holds config.json."
            )
        self._place = len(_MAGIC)
        if (version := self._number("I")) not in _VERSIONS:
            raise ModelError(
                f"model '{self._name}': unknown version of GGUF, got {version}; expected one of "
                f"{', '.join(map(str, _VERSIONS))}. Convert the model again."
            )
        n_tensors, n_fields = self._number("Q"), self._number("Q")
        metadata = {}
        for _ in range(n_fields):
            field = self._string()
            metadata[field] = self._value(self._number("I"))
        if not isinstance(metadata.get("general.architecture"), str):
            raise ModelError(
                f"model '{self._name}': the GGUF file has no 'general.architecture'. Convert the "
                "model again."
            )
        fields_end = self._place
        places = [self._tensor() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ModelError(
                f"model '{self._name}': the GGUF file is damaged: 'general.alignment' must be a "
                f"whole number from 1 on, got {alignment!r}. Download or convert it again."
            )
        begin = -(-self._place // alignment) * alignment
        tensors = {
            field: GgufTensor(shape, *self._measure(kind, shape, begin + offset))
            for field, shape, kind, offset in places
        }
        return metadata, tensors, fields_end

    def _measure(self, kind: int, shape: tuple[int, ...], begin: int) -> tuple[str, int, int]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            known = GGMLQuantizationType(kind)
        except ValueError as error:
            raise ModelError(
                f"model '{self._name}': a tensor is stored in a way that the installed gguf does "
                f"not know, got number {kind}. Install a newer one: pip install -U gguf"
            ) from error
        block, n_bytes = GGML_QUANT_SIZES[known]
        n_numbers = 1
        for axis in shape:
            n_numbers *= axis
        return known.name, begin, n_numbers // block * n_bytes

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        field = self._string()
        axes = [self._number("Q") for _ in range(self._number("I"))]
        return field, tuple(reversed(axes)), self._number("I"), self._number("Q")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(_SCALARS[kind])
        kind, n = self._number("I"), self._number("Q")
        if kind == _STRING:
            for _ in range(n):
                n_bytes = self._number("Q")  # which moves the place itself
                self._place += n_bytes
            return n
        return [self._value(kind) for _ in range(n)]

    def _string(self) -> str:
        n = self._number("Q")
        begin, self._place = self._place, self._place + n
        if self._place > len(self._content):
            raise IndexError(f"a text of {n} bytes at byte {begin}")
        return self._content[begin : self._place].decode("utf-8")

    def _number(self, form: str) -> Any:
        layout = struct.Struct(f"<{form}")
        (value,) = layout.unpack_from(self._content, self._place)
        self._place += layout.size
        return value


def _require_package(name: str) -> None:
    from transformers.utils.import_utils import is_gguf_available

    if not is_gguf_available():
        raise ModelError(
            f"model '{name}': GGUF files are read with the package gguf, which is not installed. "
            "Install it: pip install 'editbench[gguf]'"
        )
