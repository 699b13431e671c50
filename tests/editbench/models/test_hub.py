"""Fetching from a hub of our own: a few folders behind the hub's addresses, on this machine."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import close_session, constants

from editbench.errors import ModelError
from editbench.models.hub import fetch_repository, one_line
from editbench.models.loading import load_model
from editbench.models.spec import ModelSpec

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    root: Path

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/models/"):
            self.answer_about(*path.removeprefix("api/models/").split("/"))
        else:
            owner, name, _, _, *rest = path.split("/")
            self.send_file(self.root / owner / name / "/".join(rest))

    def answer_about(self, owner: str, name: str, *rest: str) -> None:
        folder = self.root / owner / name
        if name == "gated":
            self.send(403, {"X-Error-Code": "GatedRepo"}, {})
        elif not folder.is_dir():
            self.send(404, {"X-Error-Code": "RepoNotFound"}, {})
        elif rest and rest[0] == "revision" and rest[1] not in ("main", COMMIT):
            self.send(404, {"X-Error-Code": "RevisionNotFound"}, {})
        else:
            files = [path for path in folder.rglob("*") if path.is_file()]
            names = [path.relative_to(folder).as_posix() for path in files]
            tree = [
                {"type": "file", "oid": "b" * 40, "size": path.stat().st_size, "path": name}
                for path, name in zip(files, names, strict=True)
            ]
            about = {
                "id": f"{owner}/{name}",
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in names],
            }
            self.send(200, {}, tree if "tree" in rest else about)

    def send_file(self, path: Path) -> None:
        content = path.read_bytes()
        tag = hashlib.sha1(content).hexdigest()
        self.send(200, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, content)

    def send(self, status: int, headers: dict[str, str], body: object) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub(
    tmp_path: Path, model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[ThreadingHTTPServer]:
    root = tmp_path / "hub"
    shutil.copytree(model_folder(), root / "org" / "good")
    (root / "org" / "good" / "onnx").mkdir()
    for file in (
        "pytorch_model.bin",
        "code.py",
        "onnx/model.safetensors",
        "consolidated.safetensors",
    ):
        (root / "org" / "good" / file).write_text("not wanted")
    pickled = root / "org" / "pickled"
    shutil.copytree(root / "org" / "good", pickled)
    (pickled / "model.safetensors").unlink()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OurHub", (Hub,), {"root": root}))
    address = f"http://127.0.0.1:{server.server_port}"
    files = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    close_session()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    close_session()


def fetch(name: str, *, revision: str | None = None, **options: bool) -> Path:
    chosen = {"with_code": False, "allow_pickle": False, **options}
    return fetch_repository(name, revision=revision, short_names=["gpt2-xl"], **chosen)


@pytest.mark.usefixtures("hub")
class TestReachable:
    def test_fetches_what_is_needed_and_nothing_else(self) -> None:
        files = {path.name for path in fetch("org/good").rglob("*")}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
        assert not files & {"pytorch_model.bin", "code.py", "onnx", "consolidated.safetensors"}

    def test_fetches_code_where_it_is_trusted(self) -> None:
        assert (fetch("org/good", with_code=True) / "code.py").exists()

    def test_pickled_weights_only_where_they_are_allowed(self) -> None:
        with pytest.raises(ModelError, match=r"'org/pickled': .* no safetensors.* --allow-pickle"):
            fetch("org/pickled")
        assert (fetch("org/pickled", allow_pickle=True) / "pytorch_model.bin").exists()

    @pytest.mark.parametrize("name", ["org/gpt2-xll", "gpt2-xll/", "a/b/c", "a b"])
    def test_unknown_name(self, name: str) -> None:
        with pytest.raises(ModelError, match=r"no such folder, short name or hub id.*gpt2-xl"):
            fetch(name)

    @pytest.mark.parametrize(
        ("file", "content", "said"),
        [
            ("config.json", '{"quantization_config": {"quant_method": "fp8"}}', "are quantized"),
            ("adapter_config.json", "{}", "holds an adapter"),
        ],
    )
    def test_what_cannot_be_edited_is_refused_before_its_weights_are_fetched(
        self, hub: ThreadingHTTPServer, tmp_path: Path, file: str, content: str, said: str
    ) -> None:
        (hub.RequestHandlerClass.root / "org" / "good" / file).write_text(content)
        with pytest.raises(ModelError, match=f"'org/good': .*{said}"):
            fetch("org/good")
        assert not list((tmp_path / "cache").rglob("*.safetensors"))

    def test_gated(self) -> None:
        with pytest.raises(ModelError, match="'org/gated': the repository is gated"):
            fetch("org/gated")

    def test_unknown_revision(self) -> None:
        assert fetch("org/good", revision="main") == fetch("org/good")
        with pytest.raises(ModelError, match="no such revision, got 'v9'"):
            fetch("org/good", revision="v9")

    def test_short_name_stands_for_its_repository(self) -> None:
        spec = ModelSpec("tiny", repository="org/good")
        model = load_model("tiny", specs={"tiny": spec}, device="cpu")
        assert (model.name, model.spec, model.n_logits) == ("tiny", spec, 320)

    def test_download_that_breaks_off(self, hub: ThreadingHTTPServer) -> None:
        hub.RequestHandlerClass.send_file = lambda self, path: self.send(403, {}, {})
        with pytest.raises(ModelError, match="'org/good': the download failed, got"):
            fetch("org/good")


class TestUnreachable:
    def test_takes_what_the_cache_has(
        self, hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = fetch("org/good")
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        assert fetch("org/good") == folder
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert fetch("org/good") == folder

    def test_says_what_to_do(
        self, hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(ModelError) as caught:
            fetch("gpt2-xll")
        message = str(caught.value)
        assert "cannot be reached" in message
        assert "Did you mean 'gpt2-xl'?" in message
        assert "give the path of a folder" in message
        assert "\n" not in message


def test_one_line_of_a_long_error() -> None:
    assert one_line(ValueError("a\n b")) == "ValueError: a b"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert len(one_line(ValueError("x" * 1000))) < 330
