"""What is expected of the things that plugins register, call by call.

A check is given an object and what one of its methods returned, and says what is wrong with that,
as it reads on after the method's name; None if nothing is.
"""

import inspect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from editbench.plugins.guard import Check, Contract, guard_class, origin_of

_Kinds = type | tuple[type, ...]


def contract_of_editors() -> Contract:
    """What is used of an editor."""
    from editbench.costs.stage import StageCost

    return {
        "derive_defaults": _is_a(Mapping, "a mapping of fields to values"),
        "default_config": _check_default_config,
        "search_space": _check_search_space,
        "describe_trained": _is_a(str, "a string"),
        "train_briefly": _check_config,
        "check_usable": None,
        "needs_second_moments": _is_a(Mapping, "a mapping of projections to layers"),
        "estimate": _is_sequence_of(StageCost, "a sequence of StageCost"),
        "prepare": None,
        "edit": _check_edit,
    }


def contract_of_datasets() -> Contract:
    """What is used of a dataset."""
    return {
        "cases": _check_cases,
        "fingerprint": _check_fingerprint,
        "held_out_texts": _is_sequence_of(str, "a sequence of texts"),
    }


def contract_of_metrics() -> Contract:
    """What is used of a metric."""
    return {
        "questions": _check_questions,
        "values": _check_values,
        "fitted": _check_fitted,
        "rows": _check_rows,
        "settings": _check_settings,
        "units": _check_units,
        "measure": _check_measured,
    }


def check_editor_class(cls: Any) -> str | None:
    """Look at what an editor's class says about itself."""
    from editbench.editors.base import EditorConfig

    if not (inspect.isclass(cls.config_type) and issubclass(cls.config_type, EditorConfig)):
        return f"wrong config_type, got {cls.config_type!r}; expected a subclass of EditorConfig"
    return None


def check_dataset_class(cls: Any) -> str | None:
    """Look at what a dataset's class says about itself."""
    names = cls.default_metrics
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        return f"wrong default_metrics, got {names!r}; expected a tuple of names of metrics"
    return None


def check_metric_class(cls: Any) -> str | None:
    """Look at what a metric's class says about itself."""
    from pydantic import ValidationError

    from editbench.runner.provenance import describe_metric

    if not hasattr(cls, "produces"):
        return "it has no 'produces'; expected a tuple of the names of its rows"
    try:
        describe_metric(cls)
    except (ValidationError, TypeError, ValueError, IndexError) as error:
        if not isinstance(error, ValidationError):
            return f"it cannot be described, got {type(error).__name__}: {error}"
        first = error.errors()[0]
        return f"wrong '{first['loc'][0]}', got {first['input']!r} ({first['msg']})"
    return None


def check_spec(spec: Any) -> str | None:
    """Look at the fields of a model's spec."""
    for name in ("name", "notes", "defaults_source", "corpus"):
        if not isinstance(getattr(spec, name), str):
            return f"wrong '{name}', got {getattr(spec, name)!r}; expected a string"
    if not isinstance(spec.repository, str | None):
        return f"wrong 'repository', got {spec.repository!r}; expected a string"
    for name in ("find_file", "load"):
        if (value := getattr(spec, name)) is not None and not callable(value):
            return f"wrong '{name}', got {value!r}; expected a function"
    if not isinstance(spec.defaults, Mapping) or not all(
        isinstance(values, Mapping) for values in spec.defaults.values()
    ):
        return f"wrong 'defaults', got {spec.defaults!r}; expected a mapping for each editor"
    return None


def check_loaded(_: Any, loaded: Any) -> str | None:
    """Look at what a spec's `load` returned."""
    from torch import nn

    if isinstance(loaded, tuple) and len(loaded) == 2 and isinstance(loaded[0], nn.Module):
        return None
    return _wrong(loaded, "a model and its tokenizer")


def _is_a(kind: _Kinds, expected: str) -> Check:
    return lambda _, result: None if isinstance(result, kind) else _wrong(result, expected)


def _is_sequence_of(kind: _Kinds, expected: str) -> Check:
    def check(_: Any, result: Any) -> str | None:
        if not isinstance(result, Sequence) or isinstance(result, str | bytes):
            return _wrong(result, expected)
        for index, each in enumerate(result):
            if not isinstance(each, kind):
                return f"{_wrong(each, expected)}; this is number {index} of {len(result)}"
        return None

    return check


def _check_cases(dataset: Any, cases: Any) -> str | None:
    from editbench.requests import EditCase

    if problem := _is_sequence_of(EditCase, "a sequence of EditCase")(dataset, cases):
        return problem
    ids = [case.request.case_id for case in cases]
    if odd := [each for each in ids if not isinstance(each, str)]:
        return f"returned a case with a wrong case_id, got {odd[0]!r}; expected a string"
    (most_frequent, n), *_ = Counter(ids).most_common(1) or [("", 0)]
    if n > 1:
        return f"returned {n} cases with one id, got {most_frequent!r}; expected an id for each"
    return None


def _check_fingerprint(_: Any, fingerprint: Any) -> str | None:
    if isinstance(fingerprint, str) and fingerprint:
        return None
    return f"is wrong, got {_show(fingerprint)}; expected the SHA-256 of the content as a string"


def _check_questions(metric: Any, questions: Any) -> str | None:
    from typing import get_args

    from editbench.questions import Question

    kinds = get_args(Question)
    names = ", ".join(kind.__name__ for kind in kinds)
    problem = _is_sequence_of(kinds, f"a tuple of questions ({names})")
    if said := problem(metric, questions):
        return said
    for question in questions:
        for field in fields(question):
            value = getattr(question, field.name)
            if isinstance(field.type, type) and not isinstance(value, field.type):
                return f"returned a question with a wrong '{field.name}', got {question!r}"
    return None


def _check_values(metric: Any, values: Any) -> str | None:
    from editbench.metrics.base import find_fault

    if not isinstance(values, Mapping):
        return _wrong(values, "a mapping of names to numbers")
    fault = find_fault(metric, values)
    return fault and f"returned the wrong thing, {fault}"


def _check_rows(_: Any, rows: Any) -> str | None:
    from editbench.metrics.base import RowKind

    return _is_sequence_of(RowKind, "a tuple of RowKind")(_, rows)


def _check_settings(_: Any, settings: Any) -> str | None:
    if not isinstance(settings, Mapping):
        return _wrong(settings, "a mapping of names to plain values")
    json.dumps(dict(settings), allow_nan=False)  # as run.json keeps it
    return None


def _check_units(_: Any, units: Any) -> str | None:
    if problem := _is_sequence_of(str, "a sequence of ids")(_, units):
        return problem
    (most_frequent, n), *_rest = Counter(units).most_common(1) or [("", 0)]
    if n > 1:
        return f"returned {n} units with one id, got {most_frequent!r}; expected an id for each"
    return None


def _check_measured(metric: Any, measured: Any) -> str | None:
    if not isinstance(measured, Mapping):
        return _wrong(measured, "a mapping of units to mappings of names to numbers")
    found = (_check_values(metric, values) for values in measured.values())
    return next(filter(None, found), None)


def _check_fitted(metric: Any, fitted: Any) -> str | None:
    from editbench.metrics.base import Metric

    if not isinstance(fitted, Metric) or fitted.name != metric.name:
        return _wrong(fitted, "a metric of the same name")
    _guard_as(metric, fitted, f"metric '{metric.name}'", contract_of_metrics())
    return None


def _check_config(editor: Any, config: Any) -> str | None:
    if not isinstance(config, editor.config_type):
        return _wrong(config, f"a {editor.config_type.__name__}")
    config.model_dump_json()  # as run.json keeps it
    return None


def _check_default_config(editor: Any, result: Any) -> str | None:
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str)):
        return _wrong(result, "a configuration, and a sentence on where it comes from")
    return _check_config(editor, result[0])


def _check_search_space(editor: Any, space: Any) -> str | None:
    from editbench.editors.search_space import Choices, LayerWindow

    if not isinstance(space, Mapping):
        return _wrong(space, "a mapping of fields to Choices or LayerWindow")
    for name, tried in space.items():
        if name not in editor.config_type.model_fields:
            return f"returned a field that is not there, got {name!r}"
        if not isinstance(tried, Choices | LayerWindow):
            return f"{_wrong(tried, 'Choices or a LayerWindow')}; this is '{name}'"
        for part, grid in tried.parts(name).items():
            if not grid.values:
                return f"returned nothing to try for '{part}', got no values"
    return None


def _check_edit(editor: Any, edit: Any) -> str | None:
    from editbench.edits.card import EditCard
    from editbench.edits.edit import Edit

    if not isinstance(edit, Edit):
        return _wrong(edit, "an Edit")
    if not isinstance(getattr(edit, "card", None), EditCard):
        return f"returned an edit without a card, got {_show(getattr(edit, 'card', None))}"
    contract: Contract = {
        "changes_something": _is_a(bool, "True or False"),
        "applied": _check_block,
        "save": None,
    }
    _guard_as(editor, edit, f"edit of '{editor.name}'", contract)
    return None


def _guard_as(maker: Any, made: Any, what: str, contract: Contract) -> None:
    if (origin := origin_of(maker)) is not None:
        guard_class(type(made), origin, what, contract)


def _check_block(_: Any, block: Any) -> str | None:
    if hasattr(block, "__enter__") and hasattr(block, "__exit__"):
        return None
    return _wrong(block, "a context manager")


def _wrong(result: Any, expected: str) -> str:
    return f"returned the wrong thing, got {_show(result)}; expected {expected}"


def _show(value: Any) -> str:
    if value is None or isinstance(value, str | int | float):
        return f"{value!r:.80}"
    size = f" of {len(value)}" if isinstance(value, Sequence | Mapping) else ""
    return f"{type(value).__name__}{size}"
