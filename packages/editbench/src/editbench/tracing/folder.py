"""The trace folder: every traced prompt on disk as soon as it is traced, whole or not at all.

::

    <folder>/trace.json                     what is traced, and how
    <folder>/prompts/<number>.safetensors   one traced prompt
    <folder>/effects.csv, effects.json      averages, once all are traced
    <folder>/figures/                       pictures of them
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from editbench.errors import TraceError
from editbench.files.result_folders import FolderKind, encode_sealed
from editbench.files.tensor_files import TensorFile, write_tensors
from editbench.requests import content_of
from editbench.tracing.facts import KnownFact
from editbench.tracing.manifest import TraceManifest
from editbench.tracing.traces import PromptTrace, TracedPrompt

_KIND = FolderKind("trace", "trace.json", TraceError)


class TraceStore:
    """A trace folder that this process holds the lock of; made by `TraceStore.open`."""

    def __init__(self, folder: Path, manifest: TraceManifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    @contextmanager
    def open(cls, folder: Path, manifest: TraceManifest, *, resume: bool) -> Iterator["TraceStore"]:
        """Begin a trace in `folder`, or go on with the one it holds, for the length of a block.

        Args:
            folder: The trace folder; made if missing.
            manifest: What is traced.
            resume: Go on with the trace that the folder holds, if it holds one.

        Raises:
            TraceError: The folder holds a trace and `resume` is False; it holds a trace of
                something else; it holds something that is no trace; another process is writing to
                it; or it cannot be written.
        """
        refuse_folder(folder, resume=resume)
        with _KIND.locked(folder):
            yield cls(folder, _begin(folder, manifest))

    def is_traced(self, number: int) -> bool:
        """Whether the prompt of that number is stored."""
        return _prompt_path(self.folder, number).exists()

    def write(self, number: int, trace: PromptTrace) -> None:
        """Store a traced prompt.

        Raises:
            TraceError: The disk is full or the folder cannot be written; nothing is stored then.
        """
        prompt = trace.prompt
        content = {
            "number": number,
            "fact": content_of(prompt.fact),
            "token_ids": list(prompt.token_ids),
            "texts": list(prompt.texts),
            "subject": [prompt.subject.start, prompt.subject.stop],
            "answer": prompt.answer,
            "answer_text": prompt.answer_text,
            "high_score": trace.high_score,
            "low_score": trace.low_score,
        }
        tensors = {str(kind): torch.from_numpy(each) for kind, each in trace.scores.items()}
        path = _prompt_path(self.folder, number)
        with _KIND.explained("store", path):
            path.parent.mkdir(exist_ok=True)
            write_tensors(path, tensors, content)


def refuse_folder(folder: Path, *, resume: bool) -> None:
    """Refuse a place where no trace can be begun, or resumed, before any work is done.

    Raises:
        TraceError: It is no folder, holds something that is no trace, or holds a trace and `resume`
            is False.
    """
    _KIND.refuse_foreign(folder)
    if not resume:
        _KIND.refuse_begun(folder)


def refuse_other_trace(folder: Path, manifest: TraceManifest) -> None:
    """Refuse to go on with a trace of something else.

    Raises:
        TraceError: The folder holds a trace, and `manifest` describes another one.
    """
    if not _KIND.is_begun(folder):
        return
    if differences := read_manifest(folder).differences(manifest):
        raise TraceError(
            f"resume trace: the trace in {str(folder)!r} is of something else, "
            f"{'; '.join(differences)}. Repeat the options of that trace, or choose another folder."
        )


def read_manifest(folder: Path) -> TraceManifest:
    """Read the ``trace.json`` of a trace folder.

    Raises:
        TraceError: There is none, or it is damaged.
    """
    return _KIND.read_manifest(folder, TraceManifest)


def read_traces(folder: Path) -> list[PromptTrace]:
    """Read all prompts that a trace folder holds so far, in order.

    Raises:
        TraceError: One is damaged.
    """
    return [_read_prompt(path) for path in sorted(folder.glob("prompts/[0-9]*.safetensors"))]


def write_file(path: Path, content: bytes) -> None:
    """Write a file of a trace folder, whole or not at all; its folder is made if missing.

    Raises:
        TraceError: It cannot be written.
    """
    _KIND.write(path, content)


def _begin(folder: Path, manifest: TraceManifest) -> TraceManifest:
    if not _KIND.is_begun(folder):
        write_file(folder / _KIND.manifest, encode_sealed(manifest))
        return manifest
    refuse_other_trace(folder, manifest)
    return read_manifest(folder)


def _prompt_path(folder: Path, number: int) -> Path:
    return folder / "prompts" / f"{number:05d}.safetensors"


def _read_prompt(path: Path) -> PromptTrace:
    try:
        file = TensorFile(path)
        scores: dict[Any, Any] = {name: each.numpy() for name, each in file.read_all().items()}
        if (content := file.card) is None:
            raise ValueError("it has no card")
        if content.get("number", int(path.stem)) != int(path.stem):
            raise ValueError(f"it is prompt {content['number']}")
        prompt = TracedPrompt(
            fact=KnownFact(**content["fact"]),
            token_ids=tuple(content["token_ids"]),
            subject=range(*content["subject"]),
            answer=content["answer"],
            texts=tuple(content["texts"]),
            answer_text=content["answer_text"],
        )
        return PromptTrace(prompt, content["high_score"], content["low_score"], scores)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise TraceError(
            f"read trace: cannot read {str(path)!r} ({error}). Delete it, and resume the trace to "
            "compute it again."
        ) from error
