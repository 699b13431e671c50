import json

import pytest

from editbench.errors import RunError
from editbench.results.row import FIELDS, Row, encode_rows, read_rows

ROW = Row("ab", "memit", "gpt2", "toy", 2, 0, "1\u2028é", "efficacy_success", 100 / 3, "ok")


def test_rows_come_back_as_they_were(tmp_path):
    path = tmp_path / "rows.jsonl"
    failed = Row("ab", "memit", "gpt2", "toy", 2, 0, None, None, None, "error", "two\nlines")
    path.write_text(encode_rows([ROW, failed]), encoding="utf-8")
    assert list(read_rows(path)) == [ROW, failed]
    assert len(path.read_bytes().splitlines()) == 2
    assert tuple(json.loads(path.read_text().split("\n")[0])) == FIELDS


def test_numbers_that_json_lacks_are_never_written():
    with pytest.raises(ValueError, match="JSON"):
        encode_rows([Row("ab", "e", "m", "d", 1, 0, "1", "x", float("nan"), "ok")])


@pytest.mark.parametrize("line", ['{"trial": "ab"', '{"trial": "ab"}', "[]", '{"unknown": 1}'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(encode_rows([ROW]) + line, encoding="utf-8")
    with pytest.raises(RunError, match=r"rows\.jsonl:2 is no row"):
        list(read_rows(path))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(RunError, match="cannot read"):
        list(read_rows(tmp_path / "none"))
