"""The card of an edit: where it comes from, and which model it fits."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from editbench.models.editable import EditableModel
from editbench.requests import EditRequest, content_of

MEASURED = "measured"
"""Under what name `EditCard.extra` has what was measured of an edit: sentences, for model cards."""

_RECORDED_PACKAGES = ("editbench", "memit-core", "torch", "transformers")


def hash_requests(requests: Sequence[EditRequest]) -> str:
    """Content address of a batch of requests, in order: SHA-256, hexadecimal."""
    content = json.dumps([content_of(request) for request in requests], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


@cache
def package_versions() -> dict[str, str]:
    """Installed versions of the packages that a computed number can depend on."""
    versions = {}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _name_dtype(model: EditableModel) -> str:
    """The dtype of most weights: a class may keep a few in float32 whatever is asked for."""
    sizes: Counter[str] = Counter()
    for parameter in model.model.parameters():
        sizes[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return sizes.most_common(1)[0][0]


class EditCard(BaseModel):
    """Where an edit comes from, and which model it fits.

    Attributes:
        model_name: What the model was called where the edit was computed.
        model_fingerprint: Hash of that model's weights and configuration, unedited.
        edits_on: Identities of the edits that were on the model when this one was computed, in
            order: it can be put on top of these alone. Left out of files where there were none.
        model_dtype: Precision that its weights were loaded in, such as ``float32``; None in files
            that do not say.
        model_gguf: Of a model that was read from a GGUF file: its name, SHA-256, and how many
            tensors are stored in which way. Left out of files where it was not.
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
    edits_on: tuple[str, ...] = ()
    model_dtype: str | None = None
    model_gguf: dict[str, Any] | None = None
    editor: str
    config: dict[str, Any] = Field(default_factory=dict)
    requests_hash: str
    n_edits: int = Field(ge=0)
    versions: dict[str, str] = Field(default_factory=dict)
    extra: dict[str, Any] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _leave_out_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = write(self)
        for field in ("edits_on", "model_gguf"):
            if not getattr(self, field):
                del content[field]
        return content

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
            edits_on=model.edits_on,
            model_dtype=_name_dtype(model),
            model_gguf=None if model.gguf is None else model.gguf.describe(),
            editor=editor,
            config=values,
            requests_hash=hash_requests(requests),
            n_edits=len(requests),
            versions=package_versions(),
            extra=dict(extra or {}),
        )
