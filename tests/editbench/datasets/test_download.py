"""Downloads: from a real server on the loopback interface, and never from anywhere else."""

import gzip
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from editbench.datasets import RemoteFile, ZsRE, fetch
from editbench.errors import DataError
from editbench.files.whole_files import UNFINISHED

CONTENT = json.dumps([{"subject": f"subject {n}"} for n in range(20_000)]).encode()
SUM = hashlib.sha256(CONTENT).hexdigest()

FETCH = """
import sys
from pathlib import Path
from editbench.datasets import RemoteFile, fetch
url, sha256, folder = sys.argv[1:]
print(fetch(RemoteFile(url, sha256 or None), Path(folder), "zsre"))
"""


class Handler(BaseHTTPRequestHandler):
    """Serves `CONTENT` in a way that the address names."""

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        behavior = self.path.split("/")[1]
        if behavior == "stalled":
            self.server.released.wait(20)
            return
        if behavior == "missing":
            self.send_error(404)
            return
        self.send_response(200)
        body = gzip.compress(CONTENT) if behavior == "zipped" else CONTENT
        if behavior == "zipped":
            self.send_header("Content-Encoding", "gzip")
        if behavior != "unsized":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        if behavior == "truncated":
            return
        if behavior == "slow":
            self.server.released.wait(20)
        self.wfile.write(body[half:])

    def log_message(self, *_: object) -> None:
        """Stay silent."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        self.released = threading.Event()

    def remote(
        self, behavior: str = "whole", sha256: str | None = SUM, n_bytes: int | None = None
    ) -> RemoteFile:
        url = f"http://127.0.0.1:{self.server_port}/{behavior}/data.json"
        return RemoteFile(url, sha256, n_bytes)

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no error here."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


def start_fetch(remote: RemoteFile, folder: Path, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, remote.url, remote.sha256 or "", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for_partial_file(folder: Path) -> None:
    deadline = time.monotonic() + 20
    while not any(path.stat().st_size for path in folder.glob(f"{UNFINISHED}*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestSuccess:
    @pytest.mark.parametrize("behavior", ["whole", "unsized", "zipped"])
    def test_the_file_arrives_alone_and_is_not_fetched_again(
        self, server: Server, cache: Path, behavior: str
    ) -> None:
        for _ in range(2):
            path = fetch(server.remote(behavior), cache / "datasets", "zsre")
        assert path == cache / "datasets" / "data.json"
        assert path.read_bytes() == CONTENT
        assert names_in(path.parent) == ["data.json"]
        assert server.requests == [f"/{behavior}/data.json"]

    def test_progress_ends_with_everything_done(self, server: Server, cache: Path) -> None:
        reports = []
        fetch(server.remote(), cache, "zsre", lambda *report: reports.append(report))
        stages, done, total = zip(*reports, strict=True)
        assert set(stages) == {"download data.json"}
        assert set(total) == {len(CONTENT)}
        assert list(done) == sorted(done)
        assert len(set(done)) > 2
        assert done[-1] == len(CONTENT)

    def test_without_a_terminal_no_bar_is_drawn(
        self, server: Server, cache: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        fetch(server.remote(), cache, "zsre")
        assert capfd.readouterr() == ("", "")

    def test_two_processes_at_once(self, server: Server, cache: Path) -> None:
        processes = [start_fetch(server.remote("slow"), cache) for _ in range(2)]
        deadline = time.monotonic() + 20
        while len(server.requests) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        server.released.set()
        assert [process.communicate() for process in processes] == [
            (f"{cache / 'data.json'}\n", "")
        ] * 2
        assert names_in(cache) == ["data.json"]
        assert (cache / "data.json").read_bytes() == CONTENT


class TestUnknownSum:
    def test_it_is_said_recorded_and_held_to(
        self, server: Server, cache: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        remote = server.remote(sha256=None)
        with caplog.at_level(logging.WARNING):
            path = fetch(remote, cache, "zsre")
        assert f"no checksum of {remote.url} is published" in caplog.text
        assert SUM in caplog.text
        assert (cache / "data.json.sha256").read_text() == f"{SUM}  data.json\n"
        assert names_in(cache) == ["data.json", "data.json.sha256"]
        caplog.clear()
        assert fetch(remote, cache, "zsre") == path
        assert caplog.text == ""
        path.write_bytes(b"changed")
        (cache / "data.json.sha256").write_text("0" * 64)
        with (
            pytest.warns(UserWarning, match="data.json has changed, got SHA-256 .* kept as"),
            pytest.raises(DataError, match=f"is not the expected file, got SHA-256 {SUM}"),
        ):
            fetch(remote, cache, "zsre")

    def test_a_file_put_there_by_hand_is_taken_and_its_sum_recorded(
        self, server: Server, cache: Path
    ) -> None:
        cache.mkdir()
        (cache / "data.json").write_bytes(CONTENT)
        fetch(server.remote(sha256=None), cache, "zsre")
        assert (cache / "data.json.sha256").read_text().startswith(SUM)
        assert server.requests == []


class TestFailure:
    @pytest.mark.parametrize(
        ("behavior", "reason"),
        [("missing", "the server answered 404 Not Found"), ("truncated", "the transfer broke off")],
    )
    @pytest.mark.parametrize("sha256", [SUM, None])
    def test_the_server_fails(
        self, server: Server, cache: Path, behavior: str, reason: str, sha256: str | None
    ) -> None:
        remote = server.remote(behavior, sha256)
        with pytest.raises(DataError) as caught:
            fetch(remote, cache, "zsre")
        assert str(caught.value) == (
            f"dataset 'zsre': cannot download {remote.url}: {reason}. "
            "Download it elsewhere and pass --dataset zsre=PATH."
        )
        assert names_in(cache) == []

    def test_nobody_answers(self, server: Server, cache: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        with pytest.raises(DataError, match=r"no connection to the server\. .* --dataset zsre=P"):
            fetch(RemoteFile(f"http://127.0.0.1:{port}/data.json"), cache, "zsre")
        assert names_in(cache) == []

    def test_the_server_stalls(
        self, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("editbench.datasets.download._TIMEOUT_S", 0.1)
        with pytest.raises(DataError, match=r"the server did not answer within 0\.1 s"):
            fetch(server.remote("stalled"), cache, "zsre")

    def test_an_address_that_is_none(self, cache: Path) -> None:
        with pytest.raises(DataError, match=r"cannot download http:///data\.json: Invalid URL"):
            fetch(RemoteFile("http:///data.json"), cache, "zsre")

    def test_another_file_than_expected(self, server: Server, cache: Path) -> None:
        with pytest.raises(DataError) as caught:
            fetch(server.remote(sha256="0" * 64, n_bytes=7), cache, "zsre")
        message = str(caught.value)
        assert f"got SHA-256 {SUM} ({len(CONTENT)} bytes); expected {'0' * 64} (7 bytes)" in message
        assert f"--dataset zsre={cache / 'data.json.unverified'}" in message
        assert names_in(cache) == ["data.json.unverified"]

    def test_a_damaged_copy_is_downloaded_again(self, server: Server, cache: Path) -> None:
        cache.mkdir()
        (cache / "data.json").write_bytes(CONTENT[:-1])
        with pytest.warns(UserWarning, match=r"data\.json has changed, got .* kept as"):
            assert fetch(server.remote(), cache, "zsre").read_bytes() == CONTENT
        assert (cache / "data.json.damaged").read_bytes() == CONTENT[:-1]

    def test_the_cache_cannot_be_made(self, server: Server, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match=r"cannot keep data\.json in .*: Not a directory"):
            fetch(server.remote(), tmp_path / "file" / "datasets", "zsre")

    @pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
    def test_the_disk_is_full(self, server: Server, cache: Path) -> None:
        import resource

        process = start_fetch(
            server.remote(),
            cache,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        )
        _, errors = process.communicate()
        assert process.returncode == 1
        assert "DataError: dataset 'zsre': cannot keep data.json in" in errors.splitlines()[-1]
        assert names_in(cache) == []

    def test_an_interrupt_leaves_nothing(self, server: Server, cache: Path) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fetch(server.remote(), cache, "zsre", interrupt)
        assert names_in(cache) == []

    @pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
    def test_a_killed_download_is_not_taken_for_a_file(self, server: Server, cache: Path) -> None:
        process = start_fetch(server.remote("slow"), cache)
        wait_for_partial_file(cache)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (cache / "data.json").exists()
        assert fetch(server.remote("whole"), cache, "zsre").read_bytes() == CONTENT


class TestDataset:
    def test_a_dataset_downloads_when_asked_for_cases(self, server: Server, cache: Path) -> None:
        class Served(ZsRE):
            remote: ClassVar[RemoteFile | None] = server.remote()

        dataset = Served(None, cache)
        assert not cache.exists()
        with pytest.raises(DataError) as caught:
            dataset.cases()
        path = cache / "datasets" / "data.json"
        # What is served here lacks most fields of zsRE.
        assert str(caught.value).startswith(f"{path}: record 1: field 'answers' is missing")
        assert "This file was downloaded: delete it to download it again." in str(caught.value)

    def test_progress_reaches_the_caller(self, server: Server, cache: Path) -> None:
        class Served(ZsRE):
            remote: ClassVar[RemoteFile | None] = server.remote()

        reports = []
        dataset = Served(None, cache, report_progress=lambda *report: reports.append(report))
        with pytest.raises(DataError):
            dataset.cases()
        assert reports[-1] == ("download data.json", len(CONTENT), len(CONTENT))
