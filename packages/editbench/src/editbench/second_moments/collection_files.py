"""Collections in files: one collects what several want, and what is interrupted is taken up."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from editbench.datasets.corpus import Corpus
from editbench.errors import SecondMomentError
from editbench.files.cache_entries import put_aside, read_kept
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel
from editbench.progress import Progress
from editbench.second_moments.collection import collect_second_moments, describe_collection
from editbench.second_moments.collection_work import STAGE, TokenCount
from editbench.second_moments.corpus_keys import WHOLE, Shard
from editbench.second_moments.moment_files import SecondMomentFile, save_second_moments
from memit_core import SecondMoment

_SAY_AFTER_SECONDS = 10.0


@contextmanager
def alone(path: Path, report_progress: Progress | None = None) -> Iterator[None]:
    """Wait for other trials that collect the same; they begin at once when a grid is spread.

    Args:
        path: The file that is collected into; the folders above it are made.
        report_progress: Told what is waited for, if that takes more than some seconds; None warns.

    Raises:
        SecondMomentError: Nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        if Path(lock.lock_file).is_dir():
            put_aside(Path(lock.lock_file), "a lock", "there is a folder in its place")
        try:
            lock.acquire(timeout=_SAY_AFTER_SECONDS)
        except Timeout:
            waiting = f"waiting for another process, which holds {lock.lock_file}"
            if report_progress is None:
                warnings.warn(f"{STAGE}: {waiting}", stacklevel=3)
            else:
                report_progress(STAGE, 0, 0, waiting)
            lock.acquire()
    except OSError as error:
        raise SecondMomentError(f"second moments: cannot write {path}: {error}") from error
    try:
        yield
    finally:
        lock.release()


def is_collected(path: Path, provenance: Mapping[str, Any]) -> bool:
    """Whether the cache holds a collection whole; what is damaged or of another is put aside.

    All of the file is read, once in a process.

    Args:
        path: Where it is kept.
        provenance: What it has to be, from `describe_collection`.
    """

    def check() -> bool:
        file = SecondMomentFile(path)
        if not file.is_sealed:
            raise SecondMomentError("it has no checksum")
        if file.provenance != provenance:
            raise SecondMomentError("it is of another collection than its name says")
        for layer in file.shapes:
            file.check(layer)
        return True

    return read_kept(path, STAGE, check) is not None


def collect_to_file(
    model: EditableModel,
    corpus: Corpus,
    layers: Sequence[int],
    n_tokens: TokenCount,
    path: Path,
    report_progress: Progress,
    module: ProjectionKind = "mlp",
    *,
    max_length: int | None = None,
    shard: Shard = WHOLE,
) -> dict[int, SecondMoment]:
    """Collect into `path`; what an interrupted collection had is taken up again.

    Args:
        model: See `collect_second_moments`, also for what follows.
        corpus: Ordinary text.
        layers: The layers whose keys are collected.
        n_tokens: When to stop.
        path: The file; the folders above it are made.
        report_progress: Told tokens done and tokens a second.
        module: Whose output projection's inputs are the keys.
        max_length: Tokens that a text is cut to.
        shard: Which of the texts to count.

    Raises:
        SecondMomentError: The corpus has no text, or the file cannot be written.
    """
    share: dict[str, Any] = {"max_length": max_length, "shard": shard}
    provenance = describe_collection(model, corpus, layers, n_tokens, module, **share)
    checkpoint = name_checkpoint(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    moments = collect_second_moments(
        model,
        corpus,
        layers,
        n_tokens,
        report_progress,
        module=module,
        checkpoint=checkpoint,
        **share,
    )
    save_second_moments(path, moments, provenance)
    checkpoint.unlink(missing_ok=True)
    return moments


def name_checkpoint(path: Path) -> Path:
    """Where `collect_to_file` keeps what it has, as long as it is not done."""
    return path.with_name(f"{path.name}.partial")
