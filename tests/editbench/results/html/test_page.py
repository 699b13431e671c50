"""The page as text: what is in it, and that nothing in it is taken for markup."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser

import pytest

from editbench.results.html import HeatMap, HeatMapGroup
from editbench.results.html.case_data import pack


class Reader(HTMLParser):
    """Collects tags, text, and the addresses that a browser might fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.contents: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.contents += [value for name, value in attrs if name == "content"]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]

    def handle_data(self, data):
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def tags_of_ours(html: str) -> int:
    return len(re.findall(r'<script(?: type="application/gzip"[^<>]*)?>', html))


def unpack(text: str) -> object:
    return json.loads(gzip.decompress(base64.b64decode(text)))


@pytest.fixture(scope="module")
def page(write_cases, make_page) -> str:
    return make_page(write_cases(70)).html


def test_nothing_is_fetched(page):
    assert [each for each in read(page).addresses if not each.startswith("#")] == ["data:,"]
    assert "@import" not in page
    (policy,) = [text for text in read(page).contents if "script-src" in text]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")


def test_all_parts_are_there(page):
    text = " ".join(read(page).text.split())
    for part in ("Results", "Figures", "Cases", "Provenance", "ES ↑", "torch", "1,234,567"):
        assert part in text
    assert "editbench run --out '<b>here</b>'" in text
    assert "Traces" not in text
    assert "Differences" not in text


def test_failed_and_missing_trials_are_said(page):
    text = " ".join(read(page).text.split())
    assert "ft-w on a <i>model</i>, toy, 70 edits, seed 0 failed: RuntimeError: <script>" in text
    assert "1 trial(s) have not been run yet." in text
    assert "3 trials done, 1 trial failed, 1 trial not run yet." in text


def test_no_text_of_a_dataset_is_markup(page):
    tags = set(read(page).tags)
    assert not tags & {"i", "img", "b", "u"}  # "<i>", "<img" and so on of names and subjects
    assert page.count("<script") == page.count("</script>") == tags_of_ours(page)


def test_cases_are_packed(page):
    (index_text,) = re.findall(r'id="case-index">([^<]*)<', page)
    index = unpack(index_text)
    assert index["cases"]["subject"][0] == "<script>window.hacked = true</script>"
    assert len(index["cases"]["id"]) == 70
    (setting,) = index["settings"]
    assert [trial["name"] for trial in setting["trials"]] == ["unedited", "rome", "memit"]
    values = setting["trials"][2]["values"]
    assert values["efficacy_success"][:10] == [100] * 9 + [0]
    assert values["paraphrase_success"][6] == 50
    assert setting["trials"][0]["statuses"] == []
    statuses = setting["trials"][2]["statuses"]
    assert statuses[:3] == ["clamped", "skipped: its key is <b>closed</b>", None]
    sheets = [unpack(sheet) for sheet in re.findall(r'class="sheet">([^<]*)<', page)]
    assert [len(sheet) for sheet in sheets] == [64, 6]
    case = sheets[1][5]
    memit = setting["trials"][2]["trial"]
    assert case["probes"][0] == ["efficacy", "Subject 69 is", "new 0", "old 0"]
    assert case["logProbs"][memit][0] == [-7, -0.25]
    assert case["texts"][memit] == [["Subject 69 lives", "Subject 69 lives in new 0, say all."]]


def test_equal_runs_give_an_equal_page(write_cases, make_page, page):
    folder = write_cases(3)
    assert make_page(folder).html == make_page(folder).html


def test_several_runs_and_a_comparison(write_cases, make_page):
    one, other = write_cases(3, name="one"), write_cases(4, name="other", whole=True)
    page = make_page(one, other, baseline="memit")
    text = " ".join(read(page.html).text.split())
    assert "Differences to memit" in text
    assert page.n_cases == 4
    (index_text,) = re.findall(r'id="case-index">([^<]*)<', page.html)
    assert [each["label"] for each in unpack(index_text)["settings"]] == ["3 edits", "4 edits"]


def test_a_run_without_transcripts(write_cases, make_page):
    page = make_page(write_cases(3, with_cases=False))
    assert page.n_cases == 0
    assert "3 trial(s) have numbers, but no record of what was asked" in page.html
    assert "case-index" not in page.html.split("<script>")[0]


def test_a_run_that_has_only_begun(make_page, write_run, describe):
    folder = write_run({"a": describe()}, {})
    page = make_page(folder)
    assert "There are no numbers yet." in page.html
    assert "1 trial(s) have not been run yet." in page.html


def test_heat_maps(make_page):
    heat_map = HeatMap(
        title="Restored: <b>state</b>",
        row_heading="token",
        rows=("The", " <i>"),
        column_heading="layer",
        columns=("0", "1"),
        values=((0.0, 0.5), (1.0, None)),
        unit="probability",
    )
    group = HeatMapGroup("A trace", "How to read it.", (heat_map,), is_open=True)
    html = make_page(heat_maps=[group]).html
    assert '<td style="--share: 0.500">0.5</td>' in html
    assert '<td style="--share: 1.000">1</td><td>–</td>' in html
    assert "b" not in read(html).tags
    assert "No runs." in html


def test_a_flat_heat_map_has_no_shade():
    flat = HeatMap("", "", ("a",), "", ("0",), ((2.0,),), "")
    assert flat.shade(2.0) == 0.0
    assert HeatMap("", "", (), "", (), (), "").bounds == (0.0, 0.0)


def test_packed_text_cannot_end_its_element():
    content = ["</script><!--<script>&\u2028", "\ud800", 0.5, None]
    assert not set("<>&\"'\u2028") & set(pack(content))
    assert unpack(pack(content)) == content
