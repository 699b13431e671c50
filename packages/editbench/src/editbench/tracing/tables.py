"""Averages of a trace as JSON and CSV."""

import json
from typing import Any

from editbench.estimates import Estimate
from editbench.files.lines import line_to_dict, lines_to_csv
from editbench.tracing.effects import EffectLine, Effects
from editbench.tracing.suggestion import Suggestion


def write_effects_json(effects: Effects, suggestion: Suggestion | None) -> str:
    """The averages and the suggested range as one JSON object; NaN becomes null."""
    content = {
        "clean_probability": _state(effects.clean),
        "corrupted_probability": _state(effects.corrupted),
        "suggested_layers": None if suggestion is None else list(suggestion.layers),
        "rule": None if suggestion is None else suggestion.rule,
        "effects": [line_to_dict(line) for line in effects.lines],
    }
    return json.dumps(content, indent=2) + "\n"


def write_effects_csv(effects: Effects) -> str:
    """One line for each kind, role and layer; NaN becomes an empty cell."""
    return lines_to_csv(EffectLine, effects.lines)


def _state(mean: Estimate) -> dict[str, Any]:
    found = line_to_dict(mean)
    return {"value": found["value"], "ci_low": found["low"], "ci_high": found["high"], "n": mean.n}
