"""From a repository on the Hugging Face hub to a folder on this machine."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from editbench.errors import ModelError, find_nearest
from editbench.models.folder import read_config

_TEXT_FILES = ["*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja"]
_SAFE_WEIGHTS = "model*.safetensors"
_PICKLED_WEIGHTS = "pytorch_model*.bin"
_REQUEST_SECONDS = 10.0


def fetch_repository(
    name: str,
    *,
    revision: str | None,
    with_code: bool,
    allow_pickle: bool,
    short_names: Iterable[str],
    with_weights: bool = True,
) -> Path:
    """Download what a causal language model needs, or find it in the hub's cache.

    Args:
        name: A hub id, such as ``openai-community/gpt2``.
        revision: Branch, tag or commit; None for the default branch.
        with_code: Whether the repository's Python files are wanted too.
        allow_pickle: Whether pickled weights may be fetched where there are no safetensors.
        short_names: Names to suggest when there is no such repository.
        with_weights: Whether the weights are wanted, too.

    Returns:
        A folder that holds the files of one commit.

    Raises:
        ModelError: There is no such repository or revision, it asks for a login, its weights are
            pickled only, quantized or an adapter's, or the hub cannot be reached and the cache does
            not have it.
    """
    patterns = [*_TEXT_FILES, *(["*.py"] if with_code else [])]
    try:
        # One request before any download: `snapshot_download` retries an unreachable hub for a
        # long time, and the list of files tells pickled repositories apart for free.
        found = HfApi().model_info(name, revision=revision, timeout=_REQUEST_SECONDS)
    except GatedRepoError as error:  # a kind of RepositoryNotFoundError
        raise ModelError(
            f"model '{name}': the repository is gated. Accept its terms on the hub, log in with "
            "`hf auth login`, and try again."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        problem = "no such folder, short name or hub id"
        raise ModelError(_unknown(name, problem, short_names)) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"model '{name}': the repository has no such revision, got {revision!r}. "
            "Give a branch, tag or commit."
        ) from error
    except Exception as error:  # the hub's client passes on its transport's own errors
        wanted = [*patterns, _SAFE_WEIGHTS] if with_weights else patterns
        return _find_in_cache(name, revision, wanted, short_names, error)
    folder = _download(name, revision, patterns)
    read_config(folder, name=name)  # what cannot be edited is refused before weights are fetched
    if not with_weights:
        return folder
    names = [sibling.rfilename for sibling in found.siblings or []]
    weights = _SAFE_WEIGHTS
    if not any(Path(file).match(_SAFE_WEIGHTS) and "/" not in file for file in names):
        if not allow_pickle:
            raise ModelError(
                f"model '{name}': the repository has no safetensors, and pickled weights can run "
                "code when they are read. Allow them with --allow-pickle if you trust it."
            )
        weights = _PICKLED_WEIGHTS
    return _download(name, revision, [*patterns, weights])


def _download(name: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        folder = snapshot_download(
            name,
            revision=revision,  # the name and not the commit, so that it is found offline
            allow_patterns=patterns,
            ignore_patterns=["*/*"],
        )
    except Exception as error:
        raise ModelError(
            f"model '{name}': the download failed, got {one_line(error)}. "
            "Try again: what has arrived is kept."
        ) from error
    return Path(folder)


def suggest(name: str, short_names: Iterable[str]) -> str:
    """The tail of an error message: the nearest short name, and all of them."""
    known = sorted(short_names)
    nearest = find_nearest(name, known)
    did_you_mean = f" Did you mean '{nearest}'?" if nearest else ""
    return f"{did_you_mean} Short names: {', '.join(known) or 'none'}."


def one_line(error: BaseException) -> str:
    """An exception of another library, in one line."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return f"{kind}: {text[:297] + '...' if len(text) > 300 else text}" if text else kind


def _find_in_cache(
    name: str,
    revision: str | None,
    patterns: list[str],
    short_names: Iterable[str],
    reason: Exception,
) -> Path:
    try:
        # Pickled weights are not asked for: beside safetensors they were never fetched.
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=["*/*"],
            local_files_only=True,
        )
    except Exception:
        problem = (
            "not a folder, not in the hub's cache, and the Hugging Face hub cannot be reached "
            f"({one_line(reason)})"
        )
        raise ModelError(_unknown(name, problem, short_names)) from reason
    return Path(folder)


def _unknown(name: str, problem: str, short_names: Iterable[str]) -> str:
    return (
        f"model '{name}': {problem}.{suggest(name, short_names)} "
        "Check the name, or give the path of a folder that holds the model."
    )
