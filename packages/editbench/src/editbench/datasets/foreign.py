"""Facts as other tools write them: their fields, read as those of a facts file.

Known are the forms of the authors' code (`requested_rewrite`, `target_new` as an object), of
EasyEdit and the data sets that it ships, of FastEdit, QAEdit and WikiBigEdit.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from editbench.datasets.records import Record, Understanding
from editbench.errors import is_near_miss, shown
from editbench.portability import PortabilityKind

_NOT_KNOWN = "<|endoftext|>"
"""What some tools write for a true object that nobody knows."""

_NEIGHBOR_KEYS = (("prompt", "ground_truth"), ("loc", "loc_ans"), ("prompt", "target"))


@dataclass(frozen=True, slots=True)
class Reading:
    """How a field of another tool is read.

    Attributes:
        field: The field of a facts file that it fills; lists are joined, other values must agree.
        meaning: What to call it, for the user.
        read: Reads it from a record that has it, as a facts file would hold it; None for nothing.
    """

    field: str
    meaning: str
    read: Callable[[Record, str], object]


def _read_spoken(record: Record, name: str) -> str | None:
    """A text, or an object that holds it as `str`."""
    if isinstance(record.fields[name], dict):
        return record.record(name).text("str").strip()
    return record.text(name).strip()


def _read_first(record: Record, name: str) -> str | None:
    """The first text that is not blank, however deep in lists or objects with `str` it stands."""
    for value in _leaves(record.fields[name]):
        if not isinstance(value, str):
            raise record.fail(name, f"holds no text, got {value!r}. Write it as a string.")
        if value.strip() and value != _NOT_KNOWN:
            return value.strip()
    return None


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict) and "str" in value:
        value = value["str"]
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif value is not None:
        yield value


def _read_all(record: Record, name: str) -> list[str] | None:
    """All texts that are not blank, however deep they stand: an answer and its other names."""
    leaves = [value for value in _leaves(record.fields[name]) if isinstance(value, str)]
    texts = [text.strip() for text in leaves if text.strip() and text != _NOT_KNOWN]
    return list(dict.fromkeys(texts)) or None


def _read_texts(record: Record, name: str) -> list[str] | None:
    """A text, or a list of texts; blank ones are none."""
    value = record.fields[name]
    if isinstance(value, list):
        kept = [item for item in value if item != ""]
        return list(replace(record, fields={name: kept}).texts(name))
    return [record.text(name)] if value != "" else None


def _read_unrelated(record: Record, name: str) -> list[dict[str, object]]:
    """Prompts about other subjects, whose answer is the fact's true object."""
    true = record.optional_text("target_true")
    if true is None:
        raise record.fail(
            name, "have the fact's true object for an answer, got none. Add 'target_true'."
        )
    return [{"prompt": prompt, "target": true} for prompt in record.texts(name)]


def _refuse_question(record: Record, name: str) -> None:
    """Tools do not agree on what zsRE asks for."""
    raise record.fail(
        name,
        "is a question of zsRE, whose new answer is 'answers' to some tools and 'alt' to others. "
        "Call it 'prompt', and the answer that you mean 'target'; or give --dataset zsre=FILE.",
    )


def _read_locality(record: Record, name: str) -> list[dict[str, object]]:
    """Prompts and answers by kind: ``{kind: {"prompt", "ground_truth"}}``, or lists of these."""
    return list(_find_prompts(record, name, record.fields[name], _read_first))


_PORTABILITY_KINDS: Mapping[str, PortabilityKind] = {
    "reasoning": "reasoning",
    "logical_generalization": "reasoning",
    "subject_aliasing": "aliasing",
    "inverse_relation": "reversal",
    "reversal": "reversal",
    "multi_hop": "multi_hop",
    "one_hop": "multi_hop",
}
"""What EasyEdit's users and data sets call the kinds, in lower case."""


def _read_portability(record: Record, name: str) -> list[dict[str, object]]:
    """Prompts and answers by kind, as in `_read_locality`."""
    found = []
    for called, value in record.record(name).fields.items():
        kind = _PORTABILITY_KINDS.get(called.lower())
        if kind is None:
            raise record.fail(
                f"{name}.{called}", f"is unknown; expected one of {', '.join(_PORTABILITY_KINDS)}."
            )
        prompts = _find_prompts(record, f"{name}.{called}", value, _read_all)
        found += [
            {"kind": kind, "prompt": each["prompt"], "answers": each["target"]} for each in prompts
        ]
    return found


def _read_further_hop(record: Record, name: str) -> list[dict[str, object]]:
    """A question over two facts, whose answer stands beside it."""
    pairs = _pair_up(record, name, "mhop_ans", _read_all)
    return [
        {"kind": "multi_hop", "prompt": each["prompt"], "answers": each["target"]} for each in pairs
    ]


def _find_prompts(
    record: Record, place: str, value: object, read: Callable[[Record, str], object]
) -> Iterator[dict[str, object]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _find_prompts(record, f"{place}[{index}]", item, read)
    elif isinstance(value, dict):
        inner = Record(record.place, record.line, value, record.full_name(place))
        for prompt, answer in _NEIGHBOR_KEYS:
            if prompt in value and answer in value:
                yield from _pair_up(inner, prompt, answer, read)
                return
        if "prompt" in value or "loc" in value:
            prompt, answer = _NEIGHBOR_KEYS["loc" in value]
            raise inner.fail(answer, "is missing: what must the model say? Add it.")
        for kind, item in value.items():
            yield from _find_prompts(record, f"{place}.{kind}", item, read)
    elif value is not None:
        raise record.fail(
            place, f"has the wrong type, got {value!r}; expected prompts with their ground_truth."
        )


def _pair_up(
    record: Record,
    prompt: str,
    answer: str,
    read: Callable[[Record, str], object] = _read_first,
) -> list[dict[str, object]]:
    """A prompt, or a list of them, with their answers; those are None where none is given."""
    prompts = record.fields.get(prompt)
    if not isinstance(prompts, list):
        if not prompts:
            return []
        target = read(record, answer) if answer in record.fields else None
        pairs = [(record.text(prompt), target)]
    else:
        answers = record.fields.get(answer)
        if not isinstance(answers, list) or len(answers) != len(prompts):
            raise record.fail(answer, f"must be a list of {len(prompts)}, one for each {prompt}.")
        pairs = [
            (text, read(replace(record, fields={answer: each}), answer))
            for text, each in zip(record.texts(prompt), answers, strict=True)
        ]
    return [{"prompt": text, "target": target} for text, target in pairs]


_ANSWERS = ("locality_ground_truth", "loc_ans", "mhop_ans")
"""Fields that are read together with a prompt."""

FOREIGN: Mapping[str, Reading] = {
    "src": Reading("prompt", "prompt", _refuse_question),
    "update": Reading("prompt", "prompt", Record.text),
    "target": Reading("target", "target", _read_spoken),
    "target_true": Reading("target_true", "target_true", _read_first),
    "target_new": Reading("target", "target", _read_spoken),
    "ans": Reading("target", "target", _read_spoken),
    "ground_truth": Reading("target_true", "target_true", _read_first),
    "relation_id": Reading("relation", "relation", Record.optional_identifier),
    "rephrase_prompt": Reading("paraphrases", "a paraphrase", _read_texts),
    "rephrase_prompts": Reading("paraphrases", "paraphrases", _read_texts),
    "rephrase": Reading("paraphrases", "a paraphrase", _read_texts),
    "paraphrase_prompts": Reading("paraphrases", "paraphrases", _read_texts),
    "queries": Reading("paraphrases", "paraphrases", _read_texts),
    "neighborhood_prompts": Reading("neighbors", "neighbors", _read_unrelated),
    "locality": Reading("neighbors", "neighbors", _read_locality),
    "locality_prompt": Reading("neighbors", "a neighbor", partial(_pair_up, answer=_ANSWERS[0])),
    "loc": Reading("neighbors", "a neighbor", partial(_pair_up, answer=_ANSWERS[1])),
    "portability": Reading("portability", "portability", _read_portability),
    "mhop": Reading("portability", "a question over two facts", _read_further_hop),
}
"""Fields of other tools, and those of ours that others write as objects."""

COUNTERFACT: Mapping[str, Reading] = {
    **FOREIGN,
    "rephrase_prompt": Reading("generation_prompts", "an opening of generated text", _read_texts),
}
"""As EasyEdit writes CounterFact, where what it calls a rephrasing mostly is none."""

ZSRE: Mapping[str, Reading] = {
    **FOREIGN,
    "src": Reading("prompt", "prompt", Record.text),
    "alt": Reading("target", "target", _read_spoken),
    "answers": Reading("target_true", "target_true", _read_first),
}
"""As EasyEdit writes zsRE: the target is the false answer."""

_NOT_ASKED = "no metric asks about it"
_BOOKKEEPING = "bookkeeping"
_OTHER_TASK = "of another task"
_UNKNOWN = "not known"
IGNORED: Mapping[str, str] = {
    "attribute_prompts": _NOT_ASKED,
    "personas": _NOT_ASKED,
    "question": _NOT_ASKED,
    "pararel_idx": _BOOKKEEPING,
    "id": _BOOKKEEPING,
    "source": _BOOKKEEPING,
    "tag": _BOOKKEEPING,
    "cond": _OTHER_TASK,
    "pred": _OTHER_TASK,
}
"""Fields of other tools that nothing is made of, and why."""

REWRITE = "requested_rewrite"
_STRUCTURED = ("locality", "portability", REWRITE)
FLAT = tuple(name for name in (*FOREIGN, *_ANSWERS, *IGNORED) if name not in _STRUCTURED)
"""The fields of other tools that fit into a cell."""


def as_fact(
    record: Record,
    known: Collection[str],
    understanding: Understanding,
    readings: Mapping[str, Reading] = FOREIGN,
) -> Record:
    """Read the fields of another tool as those of a facts file, of which `known` are the names.

    `understanding` is told what was read as what, and what was not read.

    Returns:
        A record with fields of a facts file; its errors name the fields as `record` has them.

    Raises:
        DataError: A field is malformed, contradicts another one, or is neither known nor clearly
            of no concern.
    """
    record = _unnested(record)
    present = {name: value for name, value in record.fields.items() if value is not None}
    fields = {
        name: value
        for name, value in present.items()
        if name in known and not (name in readings and isinstance(value, dict))
    }
    names = {name: record.full_name(name) for name in fields}
    of_no_concern = ignorable(present, known, readings)
    for name in present:
        if name in IGNORED or name in of_no_concern:
            reason = IGNORED.get(name, _UNKNOWN)
            understanding.ignore(f"'{record.full_name(name)}'", reason)
        elif name not in (*known, *readings, *_ANSWERS):
            is_foreign = _is_foreign(present, known, readings)
            record.reject_unknown_fields((*known, *readings, *IGNORED) if is_foreign else known)
    for name, reading in readings.items():
        if name not in present or name in fields:
            continue
        value = reading.read(replace(record, fields={**present, **fields}), name)
        understanding.take(f"'{record.full_name(name)}'", reading.meaning)
        if reading.field in ("neighbors", "portability") and isinstance(value, list):
            answered = [each for each in value if None not in each.values()]
            if len(answered) < len(value):
                understanding.ignore(f"'{record.full_name(name)}' without an answer", _NOT_ASKED)
            value = answered
        if value is None or value == []:
            continue
        former = fields.get(reading.field)
        if isinstance(former, list) and isinstance(value, list):
            value = [*former, *(item for item in value if item not in former)]
        elif former is not None and former != value and str(former).strip() != value:
            raise record.fail(
                name,
                f"contradicts '{names[reading.field]}', got {value!r} and {former!r}. Keep one.",
            )
        fields[reading.field] = value
        names.setdefault(reading.field, record.full_name(name))
    return Record(record.place, record.line, fields, names=names)


def ignorable(
    names: Collection[str], known: Collection[str], readings: Mapping[str, Reading] = FOREIGN
) -> list[str]:
    """The unknown ones of `names` that may be ignored: in a record of another tool, and no slip."""
    if not _is_foreign(names, known, readings):
        return []
    listed = [*known, *readings, *_ANSWERS, *IGNORED]
    return [name for name in names if name not in listed and not is_near_miss(name, listed)]


def _is_foreign(
    names: Collection[str], known: Collection[str], readings: Mapping[str, Reading]
) -> bool:
    return any(name in readings and name not in known for name in names)


def _unnested(record: Record) -> Record:
    """The record with what its `requested_rewrite` holds among its own fields."""
    if record.fields.get(REWRITE) is None:
        return record
    rewrite = record.record(REWRITE)
    outer = {name: value for name, value in record.fields.items() if name != REWRITE}
    for name, value in rewrite.fields.items():
        if name in outer and outer[name] != value:
            raise rewrite.fail(name, f"contradicts '{name}' beside it, got {shown(value)}.")
    names = {name: rewrite.full_name(name) for name in rewrite.fields}
    return replace(record, fields={**outer, **rewrite.fields}, names=names)
