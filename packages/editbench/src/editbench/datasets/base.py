"""What a dataset is: cases in a fixed order, and a fingerprint of where they came from."""

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from editbench.datasets.download import RemoteFile, ReportProgress, fetch
from editbench.datasets.files import DataFile, describe_left_out, read_data_file
from editbench.datasets.records import Record, Understanding
from editbench.errors import ConfigError, DataError, RequestError, SubjectError
from editbench.requests import EditCase


class Dataset(ABC):
    """A source of edit cases.

    Subclasses set `name` and implement `cases` and `fingerprint`; the first line of their
    docstring is what ``editbench list`` shows. Constructing a dataset touches no file.

    Attributes:
        name: What ``--dataset`` calls it.
        default_metrics: Names of the metrics that are meant for it; those that its cases leave
            nothing to ask are left out.
        needs_path: Whether the user must say where the data are: there is no address to download
            them from, and nothing is embedded.
        source: Where the original lives, and its licence.
        known_errors: What is known to be wrong with its labels.
        skip_invalid: Whether records that cannot be used are left out; otherwise the first one is
            an error. Set before the cases are asked for; a `FileDataset` honors it.
    """

    name: ClassVar[str]
    default_metrics: ClassVar[tuple[str, ...]] = ("success", "accuracy")
    needs_path: ClassVar[bool] = False
    source: ClassVar[str] = ""
    known_errors: ClassVar[str] = ""
    skip_invalid: bool = False

    def __init__(self, path: Path | None, cache: Path) -> None:
        """Say where the data are.

        Args:
            path: The user's own file; None for the dataset's own source.
            cache: Folder for downloads, made when it is needed.

        Raises:
            ConfigError: The dataset needs a path and there is none.
        """
        if path is None and self.needs_path:
            raise self._no_path()
        self.path = path
        self.cache = cache

    @classmethod
    def describe(cls) -> str:
        """One line about the dataset, for ``editbench list``."""
        return (inspect.getdoc(cls) or cls.name).splitlines()[0]

    @abstractmethod
    def cases(self) -> Sequence[EditCase]:
        """All cases, validated, in the order of the source.

        Raises:
            DataError: The data cannot be had or are malformed.
        """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of the content, in hexadecimal: equal fingerprints, equal cases and texts."""

    @property
    def left_out(self) -> Sequence[str]:
        """Why records were left out, each with its place; none by default."""
        return ()

    @property
    def remarks(self) -> Sequence[str]:
        """What to tell the user about how the data were read, line by line; nothing by default."""
        return ()

    def held_out_texts(self) -> Sequence[str]:
        """Ordinary texts that no case is about, each of two words or more, in a fixed order.

        They are read before and after an edit, to see what it has done to the rest of the model.
        By default there are none. All of them are read in every trial, so let there be no more
        than some 20,000 tokens.
        """
        return ()

    def _no_path(self) -> ConfigError:
        source = f" The original: {self.source}." if self.source else ""
        return ConfigError(
            f"dataset '{self.name}': needs a file, got no path. Pass --dataset "
            f"{self.name}=PATH.{source}"
        )


class FileDataset(Dataset):
    """A dataset that is one file of records, the user's or a downloaded one.

    The file is read once, when cases or fingerprint are first asked for.

    Attributes:
        remote: Where the original lives; None where a path is needed.
        leaves_out_unlocated: Whether a record whose prompt does not have its subject is left out
            and told in any case: a published set that its user can do nothing about.
        understanding: Told by `records` and `case` of what is not written as documented.
    """

    remote: ClassVar[RemoteFile | None] = None
    leaves_out_unlocated: ClassVar[bool] = False

    def __init__(
        self, path: Path | None, cache: Path, *, report_progress: ReportProgress | None = None
    ) -> None:
        """Say where the data are; see `Dataset`.

        `report_progress` is told about a download; by default a bar is drawn if stderr is a
        terminal.
        """
        super().__init__(path, cache)
        self.report_progress = report_progress
        self.understanding = Understanding()

    @abstractmethod
    def records(self, file: DataFile) -> Iterable[Record]:
        """Split the file into records."""

    @abstractmethod
    def case(self, record: Record, index: int) -> EditCase:
        """Make a case of the record that is number `index`, from 0, in the file."""

    def cases(self) -> tuple[EditCase, ...]:
        """All cases, validated, in the order of the file."""
        return self._loaded.cases

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file's bytes, in hexadecimal; another one if records were left out."""
        loaded = self._loaded
        if not loaded.left_out:
            return loaded.sha256
        content = f"{loaded.sha256} less {len(loaded.left_out)} records"
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def left_out(self) -> tuple[str, ...]:
        """Why records were left out, each as ``facts.jsonl:3: …``."""
        return tuple(str(error) for error in self._loaded.left_out)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was understood, in one line; and how much was left out, with the first reasons."""
        loaded = self._loaded
        understood = self.understanding.describe(loaded.path)
        left_out = describe_left_out(loaded.path, loaded.left_out, len(loaded.cases))
        return (*([] if understood is None else [understood]), *left_out)

    @cached_property
    def _loaded(self) -> "_Loaded":
        if self.path is not None:
            return self._load(self.path)
        if self.remote is None:
            raise self._no_path()
        path = fetch(self.remote, self.cache / "datasets", self.name, self.report_progress)
        try:
            return self._load(path)
        except DataError as error:
            raise DataError(
                f"{error} This file was downloaded: delete it to download it again."
            ) from error

    def _load(self, path: Path) -> "_Loaded":
        return self._collect(read_data_file(path, [] if self.skip_invalid else None))

    def _collect(self, file: DataFile) -> "_Loaded":
        """Make a case of each record, or leave it out where that is allowed."""
        cases: list[EditCase] = []
        left_out = [] if file.left_out is None else file.left_out
        place_of: dict[str, str] = {}
        for record in self.records(file):
            try:
                case = self.case(record, len(cases) + len(left_out))
                case_id = case.request.case_id
                if case_id in place_of:
                    place = place_of[case_id]
                    problem = f"must be unique, got {case_id!r}, which {place} has too. Rename one."
                    raise record.fail("case_id", problem)
            except RequestError as error:
                file.leave_out(DataError(f"{record.place}: {error}"))
            except DataError as error:
                if self.leaves_out_unlocated and isinstance(error, SubjectError):
                    left_out.append(error)
                else:
                    file.leave_out(error)
            else:
                place_of[case_id] = record.place
                cases.append(case)
        if not cases and left_out:
            raise DataError(
                f"{file.path}: no record can be used, got {len(left_out)}. The first: {left_out[0]}"
            )
        if not cases:
            raise DataError(f"{file.path}: holds no records. Check the path.")
        return _Loaded(file.path, tuple(cases), file.sha256, left_out)


@dataclass(frozen=True)
class _Loaded:
    """What a file held: its cases, its sum, and why the rest was left out."""

    path: Path
    cases: tuple[EditCase, ...]
    sha256: str
    left_out: Sequence[DataError]
