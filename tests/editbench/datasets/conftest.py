from collections.abc import Callable
from pathlib import Path

import pytest

WriteFile = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteFile:
    """Write a file into the test's folder, byte for byte."""

    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache folder that does not exist: only a download may make it."""
    return tmp_path / "cache"


@pytest.fixture
def shared_data() -> Path:
    folder = Path(__file__).parents[3].parent / "shared" / "data"
    if not folder.exists():
        pytest.skip(f"needs the real data in {folder}")
    return folder
