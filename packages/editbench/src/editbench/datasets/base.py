"""What a dataset is: cases in a fixed order, and a fingerprint of where they came from."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from editbench.datasets.download import RemoteFile, ReportProgress, fetch
from editbench.datasets.files import DataFile, read_data_file
from editbench.datasets.records import Record
from editbench.errors import ConfigError, DataError, RequestError
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
    """

    name: ClassVar[str]
    default_metrics: ClassVar[tuple[str, ...]] = ("success", "accuracy")
    needs_path: ClassVar[bool] = False

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

    def held_out_texts(self) -> Sequence[str]:
        """Ordinary texts that no case is about, each of two words or more, in a fixed order.

        They are read before and after an edit, to see what it has done to the rest of the model.
        By default there are none. All of them are read in every trial, so let there be no more
        than some 20,000 tokens.
        """
        return ()

    def _no_path(self) -> ConfigError:
        return ConfigError(
            f"dataset '{self.name}': needs a file, got no path. Pass --dataset {self.name}=PATH."
        )


class FileDataset(Dataset):
    """A dataset that is one file of records, the user's or a downloaded one.

    The file is read once, when cases or fingerprint are first asked for.

    Attributes:
        remote: Where the original lives; None where a path is needed.
    """

    remote: ClassVar[RemoteFile | None] = None

    def __init__(
        self, path: Path | None, cache: Path, *, report_progress: ReportProgress | None = None
    ) -> None:
        """Say where the data are.

        Args:
            path: The user's own file; None to use the original, downloaded if need be.
            cache: Folder for downloads, made when it is needed.
            report_progress: Told about a download; by default a bar is drawn if stderr is a
                terminal.
        """
        super().__init__(path, cache)
        self.report_progress = report_progress

    @abstractmethod
    def records(self, file: DataFile) -> Iterable[Record]:
        """Split the file into records."""

    @abstractmethod
    def case(self, record: Record, index: int) -> EditCase:
        """Make a case of the record that is number `index`, from 0, in the file."""

    def cases(self) -> tuple[EditCase, ...]:
        """All cases, validated, in the order of the file."""
        return self._loaded[0]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file's bytes, in hexadecimal."""
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[tuple[EditCase, ...], str]:
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

    def _load(self, path: Path) -> tuple[tuple[EditCase, ...], str]:
        file = read_data_file(path)
        return collect_cases(self.records(file), self.case, path), file.sha256


def collect_cases(
    records: Iterable[Record], make_case: Callable[[Record, int], EditCase], path: Path
) -> tuple[EditCase, ...]:
    """Make one case of each record.

    Args:
        records: The records of one file, in order.
        make_case: Makes a case of a record and its index in the file.
        path: The file, for the message.

    Raises:
        DataError: There are no records, one is malformed, or two have the same `case_id`.
    """
    cases: list[EditCase] = []
    place_of: dict[str, str] = {}
    for index, record in enumerate(records):
        try:
            case = make_case(record, index)
        except RequestError as error:
            raise DataError(f"{record.place}: {error}") from error
        case_id = case.request.case_id
        if case_id in place_of:
            raise record.fail(
                "case_id",
                f"must be unique, got {case_id!r}, which {place_of[case_id]} has too. Rename one.",
            )
        place_of[case_id] = record.place
        cases.append(case)
    if not cases:
        raise DataError(f"{path}: holds no records. Check the path.")
    return tuple(cases)
