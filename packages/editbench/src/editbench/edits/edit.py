"""What an edit is: a value that is put on a model and taken off again, and its card."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from editbench.errors import EditError
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest

_RECORDED_PACKAGES = ("editbench", "memit-core", "torch", "transformers")


def hash_requests(requests: Sequence[EditRequest]) -> str:
    """Content address of a batch of requests, in order: SHA-256, hexadecimal."""
    content = json.dumps([asdict(request) for request in requests], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that a computed number can depend on."""
    versions = {}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


class EditCard(BaseModel):
    """Where an edit comes from, and which model it fits.

    Attributes:
        model_name: What the model was called where the edit was computed.
        model_fingerprint: Hash of that model's weights and configuration.
        editor: Name of the editor.
        config: The editor's hyperparameters.
        requests_hash: `hash_requests` of what was written.
        n_edits: How many requests were written.
        versions: Package name to version, where the edit was computed.
        extra: Whatever else the editor reports; plain JSON values.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model_name: str
    model_fingerprint: str
    editor: str
    config: dict[str, Any] = Field(default_factory=dict)
    requests_hash: str
    n_edits: int = Field(ge=0)
    versions: dict[str, str] = Field(default_factory=dict)
    extra: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: EditableModel,
        *,
        editor: str,
        config: BaseModel | Mapping[str, Any],
        requests: Sequence[EditRequest],
        extra: Mapping[str, Any] | None = None,
    ) -> Self:
        """Write the card of an edit computed just now, for `model`, from `requests`."""
        values = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
        return cls(
            model_name=model.name,
            model_fingerprint=model.fingerprint,
            editor=editor,
            config=values,
            requests_hash=hash_requests(requests),
            n_edits=len(requests),
            versions=package_versions(),
            extra=dict(extra or {}),
        )


class Edit(ABC):
    """What an editor computed: can be put on its model, taken off again, and saved.

    Attributes:
        card: Where the edit comes from, and which model it fits.
    """

    card: EditCard

    @property
    @abstractmethod
    def changes_something(self) -> bool:
        """Whether the edited model can differ from the unedited one."""

    @abstractmethod
    def applied(self, model: EditableModel) -> AbstractContextManager[None]:
        """Put the edit on `model` for the length of a ``with`` block.

        The model is back to its exact bits afterwards, also when the block raises.

        Raises:
            EditError: The edit was computed for another model, or does not fit this one.
        """

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the edit to `path`, whole or not at all.

        Raises:
            EditError: The file cannot be written.
        """

    def check_fits(self, model: EditableModel) -> None:
        """Check that the edit was computed for `model`.

        Raises:
            EditError: The fingerprints differ.
        """
        if model.fingerprint != self.card.model_fingerprint:
            raise EditError(
                f"apply edit: the edit was computed for another model, got '{model.name}' with "
                f"fingerprint {model.fingerprint}; expected '{self.card.model_name}' with "
                f"fingerprint {self.card.model_fingerprint}. Load the model, revision and dtype "
                "that the edit was made with, or compute the edit again for this one."
            )


class NoEdit(Edit):
    """The edit that leaves the model as it is."""

    def __init__(self, card: EditCard) -> None:
        self.card = card

    @classmethod
    def of(cls, model: EditableModel, requests: Sequence[EditRequest]) -> Self:
        """The unedited `model`, as an edit that answers for `requests`."""
        return cls(EditCard.of(model, editor="unedited", config={}, requests=requests))

    @property
    def changes_something(self) -> bool:
        """Always False."""
        return False

    @contextmanager
    def applied(self, model: EditableModel) -> Iterator[None]:
        """Check that the edit belongs to `model`, and change nothing."""
        self.check_fits(model)
        yield

    def save(self, path: Path) -> None:
        """Write an edit file that holds the card and no update."""
        from editbench.edits.files import write_edit_file

        write_edit_file(path, {}, self.card)
