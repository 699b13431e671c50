"""What holds for every dataset that is a file."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from editbench.datasets import CounterFact, CounterFactFull, Dataset, Facts, FileDataset, ZsRE
from editbench.datasets.download import RemoteFile
from editbench.errors import ConfigError, DataError

FACT = {"subject": "Zoë", "prompt": "{} lives in", "target": "Lyon"}
BUILT_IN = [CounterFact, CounterFactFull, Facts, ZsRE]


@pytest.mark.parametrize("dataset", BUILT_IN)
def test_each_describes_itself_in_one_line(dataset: type[Dataset]) -> None:
    line = dataset.describe()
    assert 20 < len(line) < 100
    assert "\n" not in line
    assert line.endswith(".")


@pytest.mark.parametrize("dataset", [CounterFact, CounterFactFull, ZsRE])
def test_originals_have_an_address(dataset: type[FileDataset], cache: Path) -> None:
    assert not dataset.needs_path
    assert dataset.remote is not None
    assert dataset.remote.url.startswith("https://memit.baulab.info/data/dsets/")
    dataset(None, cache)
    assert not cache.exists()


@pytest.mark.parametrize("dataset", BUILT_IN)
@pytest.mark.parametrize(
    "content", ["[]", "{}", "", "[", '[{"a": 1}]', '"text"', "null", "nonsense"]
)
def test_nonsense_is_one_clear_error(
    dataset: type[FileDataset], write, cache: Path, content: str
) -> None:
    path = write("data", content)
    with pytest.raises(DataError) as caught:
        dataset(path, cache).cases()
    assert str(caught.value).startswith(f"{path}:")
    assert "\n" not in str(caught.value)
    # The user's own file is not to be deleted.
    assert "downloaded" not in str(caught.value)


def test_cases_and_fingerprint_come_from_one_reading(tmp_path: Path, cache: Path) -> None:
    # A pipe can be read only once: `editbench edit --facts <(generate)`.
    pipe = tmp_path / "facts"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(json.dumps(FACT),))
    writer.start()
    dataset = Facts(pipe, cache)
    assert len(dataset.cases()) == 1
    assert len(dataset.fingerprint) == 64
    assert dataset.cases() is dataset.cases()
    writer.join()


def test_the_fingerprint_follows_the_content(write, cache: Path) -> None:
    one, same = write("one", json.dumps(FACT)), write("same", json.dumps(FACT))
    other = write("other", json.dumps({**FACT, "target": "Nice"}))
    fingerprints = [Facts(path, cache).fingerprint for path in (one, same, other)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_loading_writes_nothing(write, tmp_path: Path, cache: Path) -> None:
    path = write("facts.jsonl", json.dumps(FACT))
    before = [(each.name, each.stat().st_mtime_ns) for each in tmp_path.iterdir()]
    Facts(path, cache).cases()
    assert [(each.name, each.stat().st_mtime_ns) for each in tmp_path.iterdir()] == before


def test_a_dataset_with_neither_path_nor_address_says_so(cache: Path) -> None:
    class Homeless(ZsRE):
        """Nowhere."""

        name: ClassVar[str] = "homeless"
        remote: ClassVar[RemoteFile | None] = None

    with pytest.raises(ConfigError, match="dataset 'homeless': needs a file, got no path"):
        Homeless(None, cache).cases()


def test_reading_data_needs_no_heavy_library() -> None:
    code = (
        "import sys, editbench.datasets; "
        "print({'torch', 'pandas', 'numpy', 'requests', 'pooch', 'datasets'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
