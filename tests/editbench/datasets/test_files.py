"""Reading records: every fault is one line that names the file and the place in it."""

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editbench.datasets.files import (
    DataFile,
    csv_records,
    json_array_records,
    json_lines_records,
    read_data_file,
)
from editbench.datasets.records import Record
from editbench.errors import DataError

json_objects = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)


def read_csv(file: DataFile, columns: Collection[str] = ("a", "b")) -> Iterator[Record]:
    return csv_records(file, columns)


def message_of(read: Callable[[DataFile], Iterator[Record]], path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read(read_data_file(path)))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300 + len(str(path))
    return message.removeprefix(str(path))


class TestReadDataFile:
    def test_a_byte_order_mark_is_not_text(self, write) -> None:
        assert read_data_file(write("f", b"\xef\xbb\xbf[]")).text == "[]"

    def test_the_sum_is_that_of_the_bytes(self, write) -> None:
        file = read_data_file(write("f", b"abc"))
        assert file.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    @pytest.mark.parametrize("content", [b"", b" \n\t\n", b"\xef\xbb\xbf"])
    def test_empty(self, write, content: bytes) -> None:
        assert ": is empty, got " in message_of(json_array_records, write("f", content))

    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
    def test_not_utf8_names_the_line(self, write, mark: bytes) -> None:
        path = write("f", mark + "Zoë\n".encode() + b"ab\xe9cd")
        expected = ":2: is not UTF-8, got byte 0xe9. Save it as UTF-8."
        assert message_of(json_array_records, path) == expected

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
    def test_other_unicode_encodings_are_named(self, write, encoding: str) -> None:
        assert "got UTF-16" in message_of(json_array_records, write("f", "[{}]".encode(encoding)))

    def test_missing(self, tmp_path: Path) -> None:
        path = tmp_path / "absent"
        with pytest.raises(DataError, match=r"absent: cannot be read: No such file"):
            read_data_file(path)

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot be read: Is a directory"):
            read_data_file(tmp_path)


class TestJsonArray:
    def test_places_are_lines_where_there_are_lines(self, write) -> None:
        path = write("f", '\n[\n{"a": 1},\n\n  {"a":\n 2}, {"a": 3}\n]\n')
        records = list(json_array_records(read_data_file(path)))
        assert [record.place for record in records] == [f"{path}:3", f"{path}:5", f"{path}:6"]
        assert [record.line for record in records] == [3, 5, 6]
        assert [record.fields["a"] for record in records] == [1, 2, 3]

    def test_places_are_record_numbers_where_all_is_one_line(self, write) -> None:
        path = write("f", '[{"a": 1}, {"a": 2}]\n')
        places = [record.place for record in json_array_records(read_data_file(path))]
        assert places == [f"{path}: record 1", f"{path}: record 2"]

    @pytest.mark.parametrize("content", ["[]", "[ ]\n", "\n[\n]"])
    def test_an_empty_array_has_no_records(self, write, content: str) -> None:
        assert list(json_array_records(read_data_file(write("f", content)))) == []

    @settings(max_examples=40, deadline=None)
    @given(st.lists(json_objects, max_size=4), st.sampled_from([None, 0, 2]))
    def test_reads_what_json_wrote(self, objects: list[dict], indent: int | None) -> None:
        text = json.dumps(objects, indent=indent, ensure_ascii=indent is None) + "\n"
        file = DataFile(Path("f"), text, "")
        assert [record.fields for record in json_array_records(file)] == objects

    @settings(max_examples=40, deadline=None)
    @given(st.lists(json_objects, min_size=1, max_size=3), st.data())
    def test_a_prefix_of_a_file_is_never_accepted(self, objects: list[dict], data) -> None:
        text = json.dumps(objects, indent=1)
        cut = data.draw(st.integers(1, len(text) - 1))
        with pytest.raises(DataError):
            list(json_array_records(DataFile(Path("f"), text[:cut], "")))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"a": 1}', ": must hold a JSON array of records, got '{\"a\": 1}'."),
            ("<html>", ": must hold a JSON array of records, got '<html>'."),
            ("[1]", ": record 1: the record must be an object, got 1."),
            ('[{},\n["a"]]', ":2: the record must be an object, got ['a']."),
            ('[{"a": 1}', ": record 1: the file ends after this record. Fetch the whole file."),
            ('[{"a": 1},', ": record 2: ends in the middle of the record, got"),
            ('[{"a": 1},\n{"a": "b', ":2: ends in the middle of the record, got"),
            ('[{"a": 1},\n{"a":', ":2: ends in the middle of the record, got"),
            ('[{"a": 1}\n{"a": 2}]', ":1: after this record, got '{\"a\": 2}]'; expected ',' or"),
            ('[{"a": 1},\n]', ":2: is not valid JSON: Expecting value, got ']'."),
            ('[\n{"a": b}]', ":2: is not valid JSON: Expecting value, got 'b}]'."),
            ("[\n{'a': 1}]", ":2: is not valid JSON: Expecting property name"),
            ('[{"a": 1}] []', ": holds text after the array, got '[]'."),
            ("[] x", ": holds text after the array, got 'x'."),
            ('[{"a": 1, "a": 2}]', "field 'a' occurs twice in one object."),
            ('[{"a": ' + "[" * 100_000 + "]" * 100_000 + "}]", ": record 1: is nested too deeply"),
            ('[{"a": ' + "9" * 10_000 + "}]", ": record 1: is not valid JSON: Exceeds the limit"),
        ],
    )
    def test_malformed(self, write, content: str, message: str) -> None:
        assert message in message_of(json_array_records, write("f", content))


class TestJsonLines:
    def test_blank_lines_count_and_unusual_separators_do_not(self, write) -> None:
        path = write("f", '{"a": "x\u2028y\x85z"}\r\n\r\n  {"a": 2}  \n\n')
        records = list(json_lines_records(read_data_file(path)))
        assert [record.line for record in records] == [1, 3]
        assert records[0].fields == {"a": "x\u2028y\x85z"}
        assert records[1].place == f"{path}:3"

    @settings(max_examples=40, deadline=None)
    @given(st.lists(json_objects, max_size=4), st.booleans())
    def test_reads_what_json_wrote(self, objects: list[dict], escape: bool) -> None:
        text = "".join(json.dumps(each, ensure_ascii=escape) + "\n" for each in objects)
        records = json_lines_records(DataFile(Path("f"), text, ""))
        assert [record.fields for record in records] == objects

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (' [{"a": 1}]', ": must hold one JSON object a line, got a JSON array."),
            ('{"a": 1}\n2', ":2: the record must be an object, got 2."),
            ('{"a": 1}\n{\n"a": 2}', ":2: ends in the middle of the record, got '{'."),
            ('{"a": 1}\n{"a": "b', ":2: ends in the middle of the record, got"),
            ('{"a": 1} {"a": 2}', ":1: after the object, got '{\"a\": 2}'; expected a new line."),
            ('{"a": 1},\n', ":1: after the object, got ','; expected a new line."),
            ('{"a" 1}', ":1: is not valid JSON: Expecting ':' delimiter, got '1}'."),
        ],
    )
    def test_malformed(self, write, content: str, message: str) -> None:
        assert message in message_of(json_lines_records, write("f", content))


class TestCsv:
    def test_lines_quotes_and_empty_cells(self, write) -> None:
        path = write("f", ' a, b\r\n\r\n"x, ""y""\nz",1\r\n2,"  "\r\n, "q"\r\n')
        records = list(read_csv(read_data_file(path)))
        assert [record.line for record in records] == [3, 5, 6]
        assert [record.fields for record in records] == [
            {"a": 'x, "y"\nz', "b": "1"},
            {"a": "2"},
            {"b": "q"},
        ]

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.tuples(*[st.text(min_size=1).filter(str.strip)] * 2), max_size=4),
        st.sampled_from(",;\t"),
        st.sampled_from(["", "sep={}\n", '"sep={}"\r\n']),
    )
    def test_reads_what_csv_wrote(
        self, rows: list[tuple[str, str]], delimiter: str, hint: str
    ) -> None:
        text = io.StringIO(newline="")
        text.write(hint.format(delimiter))
        writer = csv.writer(text, quoting=csv.QUOTE_ALL, delimiter=delimiter)
        writer.writerows([("a", "b"), *rows])
        records = read_csv(DataFile(Path("f"), text.getvalue(), ""))
        assert [tuple(record.fields.values()) for record in records] == rows

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("a,bb\n1,2", ":1: unknown column 'bb'. Did you mean 'b'? Available: a, b."),
            ("a|b\n1|2", ":1: unknown column 'a|b'."),
            ("a;bb\n1;2", ":1: unknown column 'bb'. Did you mean 'b'?"),
            (
                "a;b\n1;2;3",
                ":2: wrong number of cells, got 3; expected 2 (a, b). Quote cells that hold semi",
            ),
            ("a,b,a\n1,2,3", ":1: column 'a' occurs 2 times."),
            ("a,b\n1,2\n1,2,3", ":3: wrong number of cells, got 3; expected 2 (a, b)."),
            ("a,b\n1", ":2: wrong number of cells, got 1; expected 2 (a, b)."),
            ('a,b\n1,2\n1,"2', ":3: is not valid CSV: unexpected end of data."),
            ('a,b\n1,"2"3', ":2: is not valid CSV: ',' expected after '\"'."),
        ],
    )
    def test_malformed(self, write, content: str, message: str) -> None:
        assert message in message_of(read_csv, write("f", content))
