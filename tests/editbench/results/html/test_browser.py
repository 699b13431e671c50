"""The page in a real browser: what a reader does with it."""

import json
import sys
import time
from itertools import pairwise

import pytest

pytest.importorskip("selenium")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

N_CASES = 120
PHONE = (375, 800)


class Visit:
    """A page that is open in the browser."""

    def __init__(self, driver) -> None:
        self.driver = driver

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def texts(self, selector):
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
        )

    def wait(self, condition):
        return WebDriverWait(self.driver, 60, poll_frequency=0.02).until(lambda _: condition())

    def choose(self, name, text):
        Select(self.one(f"#case-{name}")).select_by_visible_text(text)

    def search(self, text):
        self.one("#case-search").clear()
        self.one("#case-search").send_keys(text)

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self):
        return self.driver.switch_to.active_element

    def open_case(self, number):
        self.run("arguments[0].click()", self.all("#case-list tbody a")[number])
        self.wait(lambda: self.run("return document.getElementById('case').open"))

    @property
    def status(self):
        return self.one("#case-status").text

    @property
    def subjects(self):
        return self.texts("#case-list tbody th")


@pytest.fixture(scope="module")
def folder(write_cases):
    return write_cases(N_CASES)


@pytest.fixture(scope="module")
def address(folder, make_page, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(make_page(folder, baseline="memit").html, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def visit(browser, address):
    """The page, opened anew; afterwards nothing may have gone wrong or been asked for."""
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    open_at(browser, address)
    yield Visit(browser)
    browser.execute_script("localStorage.clear()")
    for command in ("Emulation.clearDeviceMetricsOverride", "Emulation.setEmulatedMedia"):
        browser.execute_cdp_cmd(command, {})
    assert browser.get_log("browser") == []
    assert [each for each in requests(browser) if not each.startswith(address)] == []
    assert not browser.execute_script("return window.hacked")


def open_at(browser, address):
    browser.get(address)
    ready = "return document.getElementById('cases').dataset.ready !== undefined"
    WebDriverWait(browser, 60, poll_frequency=0.02).until(lambda _: browser.execute_script(ready))


def requests(browser):
    """Addresses that the browser has asked for, by any means."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event for event in events if event["method"] == "Network.requestWillBeSent"]
    return [each["params"]["request"]["url"] for each in sent if "request" in each["params"]]


def resize(visit, width, height):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    visit.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


class TestOpening:
    def test_nothing_goes_wrong_and_nothing_is_fetched(self, visit):
        assert visit.status == "120 cases, 1 to 50 shown"
        assert visit.run("return performance.getEntriesByType('resource').length") == 0

    def test_landmarks_and_headings(self, visit):
        for landmark in ("nav", "main", "header", "footer", "form[role=search]"):
            assert len(visit.all(landmark)) == 1
        levels = visit.run(
            "return [...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => +h.tagName[1])"
        )
        assert levels.count(1) == 1
        assert all(b <= a + 1 for a, b in pairwise(levels))

    def test_everything_that_can_be_operated_has_a_name(self, visit):
        nameless = visit.run(
            """
            const isNamed = (e) => e.ariaLabel || e.getAttribute("aria-labelledby")
              || e.labels?.length || e.textContent.trim();
            return [...document.querySelectorAll("button, a, input, select, [role], [tabindex]")]
              .filter(e => e.checkVisibility() && !isNamed(e)).map(e => e.outerHTML)"""
        )
        assert nameless == []
        ids = visit.run("return [...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(set(ids)) == len(ids)


class TestTables:
    def test_a_click_sorts_and_a_third_one_restores(self, visit):
        def column():
            return visit.texts("#results-1 tbody tr > :nth-child(2)")

        heading = visit.one("#results-1 thead tr:last-child th:nth-child(2)")
        before = column()
        heading.find_element(By.TAG_NAME, "button").click()
        assert heading.get_attribute("aria-sort") == "descending"
        numbers = [float(text.split("±")[0]) for text in column()]
        assert numbers == sorted(numbers, reverse=True)
        heading.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
        assert heading.get_attribute("aria-sort") == "ascending"
        assert [float(text.split("±")[0]) for text in column()] == sorted(numbers)
        heading.find_element(By.TAG_NAME, "button").click()
        assert heading.get_attribute("aria-sort") is None
        assert column() == before

    def test_what_is_no_number_comes_last(self, visit):
        for order in (["unedited", "memit", "–"], ["memit", "unedited", "–"]):
            visit.one("#differences-1 thead th:last-child button").click()
            column = visit.texts("#differences-1 tbody td:last-child")
            assert list(dict.fromkeys(column)) == order


class TestFigures:
    def test_numbers_on_hover(self, visit):
        hit = visit.one("figure.plot .hit")
        visit.run("arguments[0].scrollIntoView({block: 'center'})", hit)
        ActionChains(visit.driver).move_to_element(hit).perform()
        tip = visit.one("#tip")
        assert tip.is_displayed()
        assert f"n = {N_CASES}" in tip.text
        assert "%" in tip.text
        visit.press(Keys.ESCAPE)
        assert not tip.is_displayed()

    def test_numbers_by_keyboard(self, visit):
        first = visit.one("figure.plot .hit[tabindex='0']")
        visit.run("arguments[0].focus()", first)
        said = visit.focused().get_attribute("aria-label")
        assert visit.one("#tip").is_displayed()
        visit.press(Keys.ARROW_RIGHT)
        assert visit.focused().get_attribute("aria-label") != said
        visit.press(Keys.ARROW_LEFT)
        assert visit.focused().get_attribute("aria-label") == said

    def test_every_number_of_the_table_can_be_pointed_at(self, visit):
        rows = visit.run("return document.querySelectorAll('tr[data-panel]').length")
        said = visit.run(
            "return [...document.querySelectorAll('.hit')].map(e => e.getAttribute('aria-label'))"
        )
        assert sum(label.count("n = ") for label in said) == rows > 20


class TestCases:
    def test_search(self, visit):
        visit.search("subject 11")
        assert visit.status == "11 of 120 cases"
        visit.search("OLD  bold")
        assert visit.subjects == ["<!-- {{ 7 * 7 }} --><b>bold</b>"]
        visit.search("東京")
        assert visit.subjects == ["Zoë 東京 🗼 \u202eright to left"]
        visit.search("no such thing")
        assert visit.status == "0 of 120 cases"

    def test_filters(self, visit):
        visit.choose("outcome", "efficacy failed")
        assert visit.status == "12 of 120 cases"
        visit.choose("relation", "relation 1")
        assert visit.status == "6 of 120 cases"  # 9, 29, …, 109
        visit.choose("editor", "unedited")
        assert visit.status == "30 of 120 cases"
        visit.choose("outcome", "specificity failed")
        assert visit.status == "0 of 120 cases"
        visit.choose("judge", "accuracy: the likeliest of all")
        visit.choose("outcome", "something failed")
        assert visit.status == "30 of 120 cases"
        visit.one("button[type=reset]").click()
        visit.wait(lambda: visit.status == "120 cases, 1 to 50 shown")
        assert visit.one("#case-editor").get_property("selectedOptions")[0].text == "memit"

    def test_a_share_is_shown_where_some_prompts_failed(self, visit):
        visit.choose("outcome", "paraphrases failed")
        assert set(visit.texts("#case-list tbody td:nth-child(7)")) == {"50 % held"}

    def test_sort(self, visit):
        visit.one("#case-list thead th:nth-child(2) button").click()
        assert visit.subjects[0] == "Zoë 東京 🗼 \u202eright to left"
        assert visit.subjects[1:3] == ["Subject 119", "Subject 118"]
        visit.one("#case-list thead th:nth-child(6) button").click()
        visit.one("#case-list thead th:nth-child(6) button").click()
        assert set(visit.texts("#case-list tbody tr:nth-child(-n+12) td:nth-child(6)")) == {
            "✗ failed"
        }

    def test_pages(self, visit):
        visit.one("#case-next").click()
        visit.one("#case-next").click()
        assert visit.status == "120 cases, 101 to 120 shown"
        assert not visit.one("#case-next").is_enabled()
        visit.one("#case-previous").click()
        assert visit.subjects[0] == "Subject 50"
        visit.search("case-7")
        assert not visit.one("#case-pages").is_displayed()


class TestOneCase:
    def test_by_keyboard(self, visit):
        visit.search("subject 69")
        visit.press(Keys.TAB)
        for _ in range(40):
            if visit.focused().tag_name == "a":
                break
            visit.press(Keys.TAB)
        link = visit.focused()
        visit.press(Keys.ENTER)
        visit.wait(lambda: visit.one("#case").is_displayed())
        assert visit.one("#case-title").text == "Subject 69"
        assert visit.focused().get_attribute("id") == "case-title"
        visit.press(Keys.ESCAPE)
        visit.wait(lambda: not visit.one("#case").is_displayed())
        assert visit.focused() == link
        assert visit.run("return location.hash") == "#cases"

    def test_probabilities_before_and_after(self, visit):
        visit.search("case-69")
        visit.open_case(0)
        tables = visit.all("#case table.probes:not(.follows)")
        assert [table.get_attribute("aria-label") for table in tables] == [
            "Efficacy: probabilities of the answers",
            "Paraphrase: probabilities of the answers",
            "Specificity: probabilities of the answers",
        ]
        assert [h.text for h in tables[0].find_elements(By.CSS_SELECTOR, "thead th")] == [
            "Answer", "unedited", "rome", "memit",
        ]  # fmt: skip
        rows = [row.text for row in tables[0].find_elements(By.CSS_SELECTOR, "tbody tr")]
        assert rows[0] == "Subject 69 is"
        assert rows[1].split()[:3] == ["new", "0", "expected"]
        assert rows[1].count("0.091 %") == 3  # 69 ends in 9: the edit did not take
        assert rows[2].count("77.9 %") == 3
        numbers = visit.one("#case table.numbers").text
        assert "ES ↑ 0.0 0.0 0.0" in numbers
        assert "PS ↑ 0.0 50.0 50.0" in numbers

    def test_texts_with_the_targets_marked(self, visit):
        visit.search("case-70")
        visit.open_case(0)
        editors = visit.texts(".beside h5")
        marks = [
            (mark.text, mark.get_attribute("class")) for mark in visit.all(".beside article mark")
        ]
        assert editors == ["unedited", "rome", "memit"]
        assert marks == [("old 1", "old"), ("new 1", "new"), ("new 1", "new")]
        assert visit.texts(".beside .given") == ["Subject 70 lives"] * 3

    def test_what_follows_from_the_fact(self, visit):
        visit.search("case-69")
        visit.open_case(0)
        tables = reasoning, reversal, hops = visit.all("#case table.follows")
        assert [table.get_attribute("aria-label") for table in tables] == [
            "Portability: reasoning: probabilities of the answers",
            "Portability: reversal: probabilities of the answers",
            "Portability: multi-hop: probabilities of the answers",
        ]

        def rows(table):
            """What is seen, row by row."""
            return visit.run(
                """
                const seen = (cell) => {
                  const copy = cell.cloneNode(true);
                  for (const each of copy.querySelectorAll(".aloud")) each.remove();
                  return copy.textContent.trim().replace(/\\s+/g, " ");
                };
                return [...arguments[0].querySelectorAll("tbody tr")]
                  .map((row) => [...row.cells].map(seen));""",
                table,
            )

        failed, passed = "✗ Port Osk 0.25 %", "✓ Port Osk 60.7 %"
        silent = "✗ Nowhere, <b>they</b> say."
        assert rows(hops) == [
            ["The home of Subject 69 lies in accepted: Osk / Port Osk one of 2 is enough"],
            ["likeliest answer", failed, passed, passed],
            ["own words", silent, "✓ Port Osk.", "✓ Port Osk."],
            ["Where is the home of Subject 69? accepted: Osk / Port Osk one of 2 is enough"],
            ["likeliest answer", failed, failed, failed],
            ["own words", silent, silent, silent],
            ["The harbor lies in accepted: Port Osk a condition, put to the unedited model"],
            ["likeliest answer", "✓ Port Osk 60.7 %"],
            ["own words", "✓ Port Osk."],
            ["by accuracy", "✗ failed", "✓ passed", "✓ passed"],
            ["by generation", "✗ failed", "✓ passed", "✓ passed"],
        ]
        left_out = "does not count: the unedited model fails a condition"
        assert rows(reasoning)[-2:] == [
            ["by accuracy", left_out],
            ["by generation", "✗ failed", "✓ passed", "✓ passed"],
        ]
        prompt, *verdicts = rows(reversal)
        assert prompt == ["Who lives there? accepted: Subject 69"]
        assert [heading for heading, *_ in verdicts] == ["by accuracy", "by generation"]
        for _, why in verdicts:
            assert why.startswith("not asked: another edit of the batch changes")

    def test_a_case_without_consequences_has_no_such_part(self, visit):
        visit.search("case-70")
        visit.open_case(0)
        assert visit.all("#case table.follows") == []

    def test_from_one_to_the_next(self, visit):
        visit.choose("outcome", "efficacy failed")
        visit.open_case(0)
        assert not visit.one("#case-before").is_enabled()
        visit.one("#case-after").click()
        visit.wait(lambda: visit.one("#case-title").text == "Subject 19")
        visit.one("#case-before").click()
        visit.wait(lambda: visit.one("#case-title").text == "Subject 9")
        visit.one("#case-close").click()
        visit.wait(lambda: not visit.one("#case").is_displayed())

    def test_can_be_linked_to_and_left_with_back(self, visit, address):
        visit.open_case(7)
        link = visit.run("return location.href")
        visit.driver.back()
        visit.wait(lambda: not visit.one("#case").is_displayed())
        visit.driver.get("about:blank")
        open_at(visit.driver, link)
        visit.wait(lambda: visit.one("#case").is_displayed())
        assert visit.one("#case-title").text == "Subject 7"

    @pytest.mark.parametrize("number", range(4))
    def test_text_of_a_dataset_stays_text(self, visit, number):
        (subject,) = visit.subjects[number : number + 1]
        assert "<" in subject
        visit.open_case(number)
        assert visit.one("#case-title").text == subject
        for selector in (".fact", ".probes", ".texts"):
            assert subject in visit.texts(f"#case {selector}")[0]
        inner = "return document.querySelectorAll('#case :is(script, img, svg, b)').length"
        assert visit.run(inner) == 0


class TestThemes:
    # Every pair of a text's color and what it stands on, as the browser sees them.
    CONTRAST = """
      const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
      const read = (color) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
      };
      const light = ([r, g, b]) => [r, g, b]
        .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const ground = (e) => {
        for (; e; e = e.parentElement) {
          const style = getComputedStyle(e);
          // A bar may stand behind a number: it is the harder ground to read from.
          const bar = e.matches?.(".probes td") && style.getPropertyValue("--share") > 0.5;
          const color = bar ? style.backgroundImage.match(/(?:color|rgb|oklab)[^)]*\\)/)[0]
                            : style.backgroundColor;
          if (read(color)[3] === 255) return read(color);
        }
      };
      const failures = new Set();
      let n = 0;
      const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      while (walker.nextNode()) {
        const e = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !e.checkVisibility()) continue;
        if (e.closest(".aloud, svg, script, :disabled, .heat td")) continue;
        const [a, b] = [light(read(getComputedStyle(e).color)), light(ground(e))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        n += 1;
        if (ratio < 4.5) failures.add(`${ratio.toFixed(2)} ${e.tagName}.${e.className} ${e.textContent}`);
      }
      return [n, [...failures]];
    """  # noqa: E501

    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_contrast(self, visit, theme):
        Select(visit.one("#theme")).select_by_visible_text(theme)
        visit.search("case-69")
        visit.open_case(0)
        visit.run("for (const each of document.querySelectorAll('details')) each.open = true")
        n_texts, failures = visit.run(self.CONTRAST)
        assert n_texts > 200
        assert failures == []

    def test_the_system_decides_unless_the_reader_does(self, visit, address):
        def ground():
            return visit.run("return getComputedStyle(document.documentElement).backgroundColor")

        def prefer(theme):
            feature = {"name": "prefers-color-scheme", "value": theme}
            visit.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

        prefer("light")
        light = ground()
        prefer("dark")
        dark = ground()
        assert light == "rgb(255, 255, 255)" != dark
        Select(visit.one("#theme")).select_by_visible_text("light")
        assert ground() == light
        visit.driver.get("about:blank")
        open_at(visit.driver, address)
        assert ground() == light  # it is remembered
        Select(visit.one("#theme")).select_by_visible_text("as the system")
        assert ground() == dark


class TestPhone:
    def test_the_page_does_not_scroll_sideways(self, visit):
        resize(visit, *PHONE)
        visit.run("for (const each of document.querySelectorAll('details')) each.open = true")
        assert visit.run("return document.documentElement.scrollWidth") == PHONE[0]
        visit.open_case(0)
        assert visit.run("const d = document.getElementById('case'); return d.scrollWidth") <= 375
        assert visit.run("return document.documentElement.scrollWidth") == PHONE[0]

    def test_figures_fit(self, visit):
        resize(visit, *PHONE)
        widths = visit.run(
            "return [...document.querySelectorAll('.panel svg')]"
            ".map(e => e.getBoundingClientRect().right)"
        )
        assert len(widths) > 4
        assert max(widths) <= PHONE[0]


def test_ten_thousand_cases(browser, write_cases, make_page, tmp_path, capsys):
    """It opens, filters, and opens a case; how long that takes is printed, not judged."""
    path = tmp_path / "large.html"
    path.write_text(make_page(write_cases(10_000, whole=True)).html, encoding="utf-8")
    browser.get("about:blank")
    start = time.perf_counter()
    open_at(browser, path.as_uri())
    opened = time.perf_counter() - start
    visit = Visit(browser)
    assert visit.status == "10,000 cases, 1 to 50 shown"
    filtered = visit.run("""
      const search = document.getElementById("case-search");
      search.value = "subject 99";
      const start = performance.now();
      search.dispatchEvent(new Event("input", {bubbles: true}));
      document.body.offsetHeight;
      return performance.now() - start;""")
    assert visit.status == "280 of 10,000 cases, 1 to 50 shown"
    visit.search("case-9999")
    start = time.perf_counter()
    visit.open_case(0)
    shown = time.perf_counter() - start
    assert visit.one("#case-title").text == "Subject 9999"
    with capsys.disabled():
        sys.stdout.write(
            f"\n10,000 cases, {path.stat().st_size / 1e6:.1f} MB: opened in {opened:.2f} s, "
            f"searched in {filtered:.0f} ms, one case shown in {1000 * shown:.0f} ms\n"
        )
