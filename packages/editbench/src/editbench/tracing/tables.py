"""Averages of a trace as JSON and CSV."""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from editbench.estimates import Estimate
from editbench.tracing.effects import EffectLine, Effects
from editbench.tracing.suggestion import Suggestion


def write_effects_json(effects: Effects, suggestion: Suggestion | None) -> str:
    """The averages and the suggested range as one JSON object; NaN becomes null."""
    content = {
        "clean_probability": _state(effects.clean),
        "corrupted_probability": _state(effects.corrupted),
        "suggested_layers": None if suggestion is None else list(suggestion.layers),
        "rule": None if suggestion is None else suggestion.rule,
        "effects": [_without_nan(asdict(line)) for line in effects.lines],
    }
    return json.dumps(content, indent=2) + "\n"


def write_effects_csv(effects: Effects) -> str:
    """One line for each kind, role and layer; NaN becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(EffectLine)]
    writer.writerow(names)
    for line in effects.lines:
        values = _without_nan(asdict(line))
        writer.writerow(["" if values[name] is None else values[name] for name in names])
    return text.getvalue()


def _state(mean: Estimate) -> dict[str, Any]:
    return _without_nan(
        {"value": mean.value, "ci_low": mean.low, "ci_high": mean.high, "n": mean.n}
    )


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(each, float) and math.isnan(each) else each
        for name, each in values.items()
    }
