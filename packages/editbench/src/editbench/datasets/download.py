"""Original data files, downloaded once into a cache folder and checked before they are used."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from editbench.errors import DataError
from editbench.files.cache_entries import read_kept
from editbench.files.seals import checksum_file
from editbench.files.whole_files import write_whole, writing_whole

if TYPE_CHECKING:
    from requests import RequestException

ReportProgress = Callable[[str, int, int], None]
"""Told about long work: which stage, how much is done, and of how much (bytes, here)."""

_TIMEOUT_S = 30
_CHUNK_BYTES = 1 << 16
_SUM = re.compile(rb"[0-9a-f]{64}\b")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at its original address.

    Attributes:
        url: The address.
        sha256: SHA-256 in hexadecimal, or None where nobody has published it; then the sum of
            what came first is recorded beside the file, and later loads are held to that.
        n_bytes: Size, where it is known.
    """

    url: str
    sha256: str | None = None
    n_bytes: int | None = None

    @property
    def name(self) -> str:
        """The file's name, without the address."""
        return PurePosixPath(urlsplit(self.url).path).name


def fetch(
    remote: RemoteFile, folder: Path, dataset: str, report_progress: ReportProgress | None = None
) -> Path:
    """Return the cached copy of a remote file, downloading it if there is none.

    The file appears under its name whole and checked, or not at all; several processes may fetch
    it at once. A file with the wrong sum is kept beside, as ``<name>.unverified``, for the user to
    accept or to throw away. A copy that has changed since is put aside, and downloaded again.

    Args:
        remote: What to fetch.
        folder: Where copies are kept; made if need be.
        dataset: Name of the dataset, for messages.
        report_progress: Told about the download; by default a bar is drawn if stderr is a
            terminal.

    Raises:
        DataError: The file cannot be downloaded or written, or its sum is not the expected one.
    """
    path = folder / remote.name
    try:
        what = f"dataset '{dataset}'"
        if read_kept(path, what, lambda: _check_cached(remote, path)) is None:
            _download(remote, path, dataset, report_progress)
    except OSError as error:
        raise DataError(
            f"dataset '{dataset}': cannot keep {remote.name} in {folder}: "
            f"{error.strerror or error}. Make room, or choose another cache folder."
        ) from error
    return path


def _download(
    remote: RemoteFile, path: Path, dataset: str, report_progress: ReportProgress | None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing_whole(path) as unfinished:
        _transfer(remote, unfinished, dataset, report_progress)
        sha256, n_bytes = checksum_file(unfinished), unfinished.stat().st_size
        expected = remote.sha256 or _recorded_sum(path)
        if expected is None:
            # The sum goes first: a file without one would pass any later check.
            _record_sum(path, sha256)
            _logger.warning(
                "dataset '%s': no checksum of %s is published, so %s cannot be checked; its "
                "SHA-256, %s, is recorded and later loads are held to it.",
                dataset,
                remote.url,
                path,
                sha256,
            )
        elif sha256 != expected:
            unverified = path.with_name(f"{path.name}.unverified")
            unfinished.replace(unverified)
            size = "" if remote.n_bytes is None else f" ({remote.n_bytes} bytes)"
            raise DataError(
                f"dataset '{dataset}': {remote.url} is not the expected file, got SHA-256 {sha256} "
                f"({n_bytes} bytes); expected {expected}{size}. Try again "
                f"later, or accept it as it is with --dataset {dataset}={unverified}."
            )


def _transfer(
    remote: RemoteFile, target: Path, dataset: str, report_progress: ReportProgress | None
) -> None:
    import pooch
    import requests
    from tqdm import tqdm

    stage = f"download {remote.name}"
    is_hidden = True if report_progress else None  # None: unless stderr is a terminal
    with tqdm(desc=stage, unit="B", unit_scale=True, disable=is_hidden) as bar:

        def draw(_: str, done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        downloader = pooch.HTTPDownloader(
            progressbar=_TransferProgress(stage, report_progress or draw),
            chunk_size=_CHUNK_BYTES,
            timeout=_TIMEOUT_S,
        )
        try:
            downloader(remote.url, str(target), None)
        except requests.RequestException as error:
            if error.response is not None:
                error.response.close()  # pooch leaves the connection of a refusal open
            raise DataError(
                f"dataset '{dataset}': cannot download {remote.url}: {_reason_of(error)}. "
                f"Download it elsewhere and pass --dataset {dataset}=PATH."
            ) from error


def _check_cached(remote: RemoteFile, path: Path) -> str:
    """The sum of a copy; raises ValueError if it is not the expected one."""
    sha256 = checksum_file(path)
    expected = remote.sha256 or _recorded_sum(path)
    if expected is None:
        _record_sum(path, sha256)
    elif sha256 != expected:
        raise ValueError(f"{path} has changed, got SHA-256 {sha256}; expected {expected}")
    return sha256


def _sum_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _record_sum(path: Path, sha256: str) -> None:
    """Write the sum beside the file, in the format of ``sha256sum``, whole or not at all."""
    write_whole(_sum_path(path), f"{sha256}  {path.name}\n")


def _recorded_sum(path: Path) -> str | None:
    recorded = _sum_path(path)
    match = _SUM.match(recorded.read_bytes()) if recorded.is_file() else None
    return match[0].decode() if match is not None else None


def _reason_of(error: "RequestException") -> str:
    """Why a download failed, in a few words: the exception's own text runs to three lines."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return f"the server did not answer within {_TIMEOUT_S} s"
    if isinstance(error, requests.ConnectionError):
        return "there is no connection to the server"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the transfer broke off"
    return str(error)


class _TransferProgress:
    """What pooch tells about a transfer, handed on to a `ReportProgress`.

    Pooch sets `total`, calls `update` with the bytes of each chunk, and at the end `reset`,
    `update` with the total, and `close`.
    """

    def __init__(self, stage: str, report: ReportProgress) -> None:
        self.stage = stage
        self.report = report
        self.total = 0
        self.done = 0

    def update(self, n_bytes: int) -> None:
        # Without a length from the server the total is 0, and then it cannot bound anything.
        self.done = min(self.done + n_bytes, self.total or self.done + n_bytes)
        self.report(self.stage, self.done, self.total)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        """Nothing to close: whoever made the report function does."""
