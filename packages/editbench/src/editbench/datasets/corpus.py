"""Ordinary text, from which second moments are collected."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from editbench.datasets.named_text import write_texts
from editbench.errors import ConfigError, DataError
from editbench.files.seals import checksum_file

HUB_PREFIX = "hf:"
_N_NAMED = 2  # texts with names, for each paragraph of prose


@dataclass(frozen=True)
class Corpus:
    """A named source of texts that can be read more than once, in the same order each time.

    Attributes:
        name: What provenance calls it.
        fingerprint: Changes when the texts do.
        texts: Opens the source; each call starts from the beginning.
    """

    name: str
    fingerprint: str
    texts: Callable[[], Iterable[str]] = field(repr=False, compare=False)


def text_file_corpus(path: Path) -> Corpus:
    """A UTF-8 text file, one text a line; empty lines are skipped.

    Raises:
        DataError: The file cannot be read or holds no text.
    """
    try:
        sha256 = checksum_file(path)
    except OSError as error:
        raise DataError(f"corpus: cannot read {path}: {error.strerror}.") from error

    def read_lines() -> Iterator[str]:
        try:
            with path.open(encoding="utf-8") as file:
                for line in file:
                    if text := line.strip():
                        yield text
        except UnicodeDecodeError as error:
            raise DataError(
                f"corpus: {path} is not UTF-8 text ({error.reason} at byte {error.start}). "
                "Convert it to UTF-8."
            ) from error

    if next(read_lines(), None) is None:
        raise DataError(f"corpus: {path} holds no text. Give a text file, one text a line.")
    return Corpus(f"text:{path.name}", sha256, read_lines)


def prose_corpus() -> Corpus:
    """The embedded text: 26,000 words of this project's documentation, as it once was, and names.

    Between its paragraphs stand 41,000 words of sentences about invented people, places,
    works and firms. Facts are about such, and documentation alone has no word of them: it would
    say that nothing is lost where their keys lie. Enough for the second moments of a small model;
    not what a large model's should rest on.
    """
    path = Path(__file__).with_name("prose.txt")

    def read_texts() -> Iterator[str]:
        named = write_texts(seed=0)
        for text in text_file_corpus(path).texts():
            yield text
            yield from islice(named, _N_NAMED)

    sha256 = hashlib.sha256("\n".join(read_texts()).encode()).hexdigest()
    return Corpus("text:prose.txt", sha256, read_texts)


def hub_corpus(name: str) -> Corpus:
    """A dataset of the Hugging Face hub, or a local folder in its format, streamed.

    Args:
        name: ``hf:REPOSITORY[:CONFIG[:SPLIT[:COLUMN]]]``, such as
            ``hf:wikimedia/wikipedia:20231101.en``; split `train` and column `text` by default.

    Raises:
        ConfigError: The extra ``editbench[hub]`` is not installed, or the name is malformed.
    """
    parts = name.removeprefix(HUB_PREFIX).split(":")
    repository, config, split, column = (parts + [""] * 4)[:4]
    if not repository or len(parts) > 4:
        raise ConfigError(
            f"corpus: malformed name, got {name!r}; "
            "expected hf:REPOSITORY[:CONFIG[:SPLIT[:COLUMN]]]."
        )
    split, column = split or "train", column or "text"
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"corpus: reading {name!r} needs the datasets library. "
            "Install it: pip install 'editbench[hub]', or give a text file."
        ) from error

    def read_rows() -> Iterator[str]:
        try:
            rows = datasets.load_dataset(repository, config or None, split=split, streaming=True)
            for row in rows:
                if text := str(row[column]).strip():
                    yield text
        except KeyError as error:
            raise DataError(f"corpus: {name!r} has no column {error}.") from error
        except (OSError, ValueError) as error:
            first_line = str(error).strip().split("\n", maxsplit=1)[0]
            raise DataError(
                f"corpus: cannot read {name!r}: {first_line} "
                "Check the name and the connection, or give a text file."
            ) from error

    return Corpus(name, name, read_rows)
