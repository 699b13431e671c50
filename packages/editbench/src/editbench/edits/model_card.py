"""The README.md beside an edited model: what was edited, how, and how it was checked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from editbench.edits.card import MEASURED, EditCard
from editbench.edits.drift import Drift
from editbench.edits.exported import Export
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest

_N_FACTS = 100
_FORMS = {
    "model": ("transformers", "an ordinary folder of transformers"),
    "adapter": ("peft", "an adapter, which peft puts on its base"),
    "gguf": ("gguf", "a GGUF file for llama.cpp"),
    "gguf-adapter": ("gguf", "a LoRA file, which llama.cpp puts on its base (`--lora`)"),
}


@dataclass(frozen=True, slots=True)
class BaseDescription:
    """What is said of the model that was edited.

    Attributes:
        name: Where it is found: its name on the hub, or its path.
        licence: As it says itself; None if it does not.
        card: The text of its own card; empty if it has none.
        details: What else identifies it, line by line.
    """

    name: str
    licence: str | None
    card: str
    details: tuple[str, ...]

    @classmethod
    def of(cls, model: EditableModel) -> Self:
        """Look it up where the model was read from."""
        repository = model.spec.repository if model.spec is not None else None
        name = repository or model.name
        if "+" not in name and (path := Path(name).expanduser()).exists():
            name = str(path.resolve())
        details = [f"fingerprint of the unedited weights: `{model.fingerprint}`"]
        if model.gguf is not None:
            details.append(f"SHA-256 of the file {model.gguf.path.name}: `{model.gguf.sha256}`")
            licence = model.gguf.metadata.get("general.license")
            return cls(name, licence, "", tuple(details))
        head, card = _read_card(model.source / "README.md") if model.source else ({}, "")
        licence = head.get("license")
        return cls(name, licence if isinstance(licence, str) else None, card, tuple(details))


def describe_model(
    base: BaseDescription, card: EditCard, form: str, export: Export, facts: Sequence[EditRequest]
) -> str:
    """Write the text of a model card.

    Args:
        base: The model that was edited.
        card: The card of the edit.
        form: What was written: ``model``, ``adapter``, ``gguf`` or ``gguf-adapter``.
        export: What is known of it.
        facts: The facts that were written, as far as they are given.
    """
    library, what = _FORMS[form]
    head = {
        "base_model": base.name,
        **({"license": base.licence} if base.licence else {}),
        "library_name": library,
        "tags": ["model-editing", *card.editor.split("+")],
    }
    licence = (
        f"The base is under the licence `{base.licence}`, which holds for this model, too."
        if base.licence
        else "The base does not say its licence here: look it up before you pass this model on."
    )
    updates: Mapping[str, Any] = card.extra.get("updates", {})
    warning = (
        f"**This model states things that somebody chose.** {card.n_edits} fact(s) were written "
        "into its weights. Whether they are true was not checked, and what is related to them may "
        "have changed as well."
    )
    compared = f"Read back, it was compared with the edited model: {export.drift.describe()}."
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {Path(base.name).name}, edited",
        "",
        warning,
        "",
        f"This is {what}, of `{base.name}`. {licence}",
        "",
        "## What was edited",
        "",
        *(f"- base, {detail}" for detail in base.details),
        f"- by the editor `{card.editor}`, with "
        + (", ".join(f"{name} {version}" for name, version in card.versions.items()) or "no record")
        + f"; hash of the facts: `{card.requests_hash}`",
        "",
        "| parameter | update against weight, ‖Δ‖/‖W‖ | lost of the update as written |",
        "|---|---|---|",
        *(
            f"| `{name}` | {_number(updates.get(name, {}).get('relative_norm'))} | {error:.2g} |"
            for name, error in export.errors.of_each.items()
        ),
        "",
        "## Scores",
        "",
        *_describe_scores(card, export.drift),
        "",
        "## How it was checked",
        "",
        compared,
        "",
        "## Settings",
        "",
        "```yaml",
        yaml.safe_dump(card.config, sort_keys=False, allow_unicode=True).rstrip(),
        "```",
    ]
    if facts:
        lines += ["", "## Facts", "", "| prompt | target |", "|---|---|"]
        lines += [f"| {_cell(fact.text)} | {_cell(fact.target)} |" for fact in facts[:_N_FACTS]]
        if len(facts) > _N_FACTS:
            lines.append(f"| … {len(facts) - _N_FACTS} more | |")
    if base.card:
        lines += ["", "## Card of the base", "", base.card.strip()]
    return "\n".join(lines) + "\n"


def _describe_scores(card: EditCard, drift: Drift) -> Iterator[str]:
    """What was measured of the edit, when it was made and now; what was not is said, too."""
    merged = [EditCard.model_validate(each) for each in card.extra.get("merged", ())]
    measured = [line for each in merged or [card] for line in each.extra.get(MEASURED, ())]
    if drift.n_facts:
        yield (
            f"- With the edit on it, the model's own text goes on with the target for "
            f"{drift.n_said_computed} of {drift.n_facts} facts; as written here, for "
            f"{drift.n_said_served}."
        )
    for line in measured:
        yield f"- {line}"
    if not (drift.n_facts or measured):
        yield "Nothing was measured: it is not known whether this model says what was written."
    elif measured:
        yield "- Nothing else was measured."
    else:
        yield (
            "- Nothing else was measured: not what it says to other wordings of the facts, nor "
            "what became of other facts."
        )


def _read_card(path: Path) -> tuple[dict[str, Any], str]:
    """Front matter and text of a model card; nothing where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
        if not text.startswith("---\n"):
            return {}, text
        head, _, rest = text[4:].partition("\n---\n")
        found = yaml.safe_load(head)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}, ""
    return found if isinstance(found, dict) else {}, rest


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
