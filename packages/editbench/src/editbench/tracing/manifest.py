"""What is traced: ``trace.json``, written before the first prompt and never changed after."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from editbench.tracing.settings import TraceSettings
from editbench.tracing.traces import PromptTrace


class TraceManifest(BaseModel):
    """The content of ``trace.json``: what is traced, written before the first prompt.

    Attributes:
        format: Version of the trace folder's format.
        created: When the trace was begun, ISO 8601 with time zone.
        provenance: Where and with what: packages, Python, platform, command line.
        model: ``name``, ``fingerprint``, ``tokenizer_fingerprint``, ``dtype`` and ``n_layers``.
        facts: ``source``; ``hash`` and ``n_facts`` of all its facts; how many the model was asked
            for (``n_asked``), how many of those it completes with something else (``n_skipped``),
            and how many are traced (``n_prompts``).
        noise: As given, such as ``3s``.
        spread: σ of the subjects' embeddings, if the noise is a multiple of it.
        settings: Everything else that the scores depend on.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    created: str
    provenance: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any]
    facts: dict[str, Any]
    noise: str
    spread: float | None
    settings: TraceSettings

    def differences(self, other: "TraceManifest") -> list[str]:
        """How a trace described by `other` would differ, one line per field."""
        ours, theirs = self._flat(), other._flat()
        return [
            f"{field}: got {theirs.get(field, 'nothing')}; expected {ours.get(field, 'nothing')}"
            for field in {**ours, **theirs}
            if ours.get(field) != theirs.get(field)
        ]

    def _flat(self) -> dict[str, str]:
        content = self.model_dump(mode="json", exclude={"format", "created", "provenance"})
        del content["model"]["name"]  # what a model is called does not matter
        flat: dict[str, str] = {}
        for name, value in content.items():
            inner = value.items() if isinstance(value, dict) else [("", value)]
            flat |= {f"{name}.{key}" if key else name: json.dumps(each) for key, each in inner}
        return flat


@dataclass(frozen=True)
class Trace:
    """A finished trace.

    Attributes:
        manifest: What was traced.
        prompts: Every traced prompt, in order.
        replay_failure: Why cells had to be computed one at a time; None if they had not.
    """

    manifest: TraceManifest
    prompts: tuple[PromptTrace, ...]
    replay_failure: str | None
