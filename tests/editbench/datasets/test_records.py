"""Fields of a record: wrong ones are named, with what was found."""

from collections.abc import Callable

import pytest

from editbench.datasets.records import Record
from editbench.errors import DataError


def make_record(**fields: object) -> Record:
    return Record("facts.jsonl:3", 3, fields)


def test_reads_fields_of_the_right_type() -> None:
    record = make_record(
        a="x", n=7, s="7", l=["x", "y"], e=[], o={"b": "z"}, r=[{"b": "w"}], null=None
    )
    assert record.text("a") == record.optional_text("a") == "x"
    assert record.identifier("n") == record.identifier("s") == "7"
    assert record.texts("l") == record.optional_texts("l") == ("x", "y")
    assert record.texts("e") == ()
    assert record.record("o").text("b") == "z"
    assert [each.text("b") for each in record.records("r")] == ["w"]


@pytest.mark.parametrize("fields", [{}, {"a": None}])
def test_absent_and_null_are_the_same(fields: dict[str, object]) -> None:
    record = make_record(**fields)
    assert record.optional_text("a") is None
    assert record.optional_identifier("a") is None
    assert record.optional_texts("a") == ()
    assert record.optional_records("a") == ()
    for read in (record.text, record.identifier, record.texts, record.record, record.records):
        with pytest.raises(DataError, match=r"^facts\.jsonl:3: field 'a' is missing, got "):
            read("a")


@pytest.mark.parametrize(
    ("value", "read", "problem"),
    [
        (5, Record.text, "has the wrong type, got 5; expected a string."),
        (["x"], Record.optional_text, "has the wrong type, got ['x']; expected a string."),
        (" ", Record.text, "is empty, got ' '. Fill it in."),
        ("\ud800", Record.text, "holds half of a surrogate pair, got '\\ud800'."),
        (True, Record.identifier, "got True; expected a string or an integer."),
        (1.5, Record.identifier, "got 1.5; expected a string or an integer."),
        ("x", Record.texts, "has the wrong type, got 'x'; expected a list of strings."),
        ({}, Record.optional_texts, "has the wrong type, got {}; expected a list of strings."),
        ([], Record.record, "has the wrong type, got []; expected an object."),
        ({}, Record.records, "has the wrong type, got {}; expected a list of objects."),
        (0, Record.optional_records, "has the wrong type, got 0; expected a list of objects."),
    ],
)
def test_wrong_values(value: object, read: Callable[[Record, str], object], problem: str) -> None:
    with pytest.raises(DataError) as caught:
        read(make_record(a=value), "a")
    assert str(caught.value).startswith("facts.jsonl:3: field 'a' ")
    assert problem in str(caught.value)


def test_nested_fields_are_named_in_full() -> None:
    record = make_record(o={"p": {"q": 1}}, l=["x", 2], r=[{}, {"b": []}])
    with pytest.raises(DataError, match=r"field 'o\.p\.q' has the wrong type"):
        record.record("o").record("p").text("q")
    with pytest.raises(DataError, match=r"field 'l\[1\]' has the wrong type, got 2"):
        record.texts("l")
    with pytest.raises(DataError, match=r"field 'r\[1\]\.b' has the wrong type"):
        record.records("r")[1].text("b")
    with pytest.raises(DataError, match=r"unknown field 'r\[1\]\.b'. .*Available: r\[1\]\.c\."):
        record.records("r")[1].reject_unknown_fields(["c"])


def test_unknown_fields_come_with_a_suggestion() -> None:
    with pytest.raises(DataError, match=r"unknown field 'subjct'\. Did you mean 'subject'\?"):
        make_record(subjct="x").reject_unknown_fields(["subject", "prompt"])


def test_long_values_are_shortened() -> None:
    with pytest.raises(DataError) as caught:
        make_record(a="x" * 10_000).texts("a")
    assert len(str(caught.value)) < 200
