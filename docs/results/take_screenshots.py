"""Pictures of an HTML report for the gallery, taken in a headless Chromium.

    python docs/results/take_screenshots.py REPORT.html FOLDER

The report has to hold cases, texts and the heat maps of a trace. `make gallery` makes one.
"""

import argparse
import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

DESKTOP = (1440, 900)
PHONE = (390, 844)
_PATIENCE = 60


class Reader:
    """Somebody who looks at a report in a browser window of one size, in one theme."""

    def __init__(self, driver: webdriver.Chrome, page: Path) -> None:
        self._driver = driver
        self._address = page.resolve().as_uri()

    def open(self, size: tuple[int, int], theme: str) -> None:
        """Open the page anew, and wait until cases can be browsed."""
        width, height = size
        is_phone = width < DESKTOP[0]
        metrics = {"width": width, "height": height, "mobile": is_phone}
        self._driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {**metrics, "deviceScaleFactor": 2 if is_phone else 1},
        )
        feature = {"name": "prefers-color-scheme", "value": theme}
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        self._driver.get("about:blank")
        self._driver.get(self._address)
        self.wait("document.getElementById('cases').dataset.ready !== undefined")

    def run(self, script: str) -> None:
        """Do something on the page."""
        self._driver.execute_script(script)

    def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        WebDriverWait(self._driver, _PATIENCE, poll_frequency=0.05).until(
            lambda driver: driver.execute_script(f"return {condition}")
        )

    def go_to(self, selector: str) -> None:
        """Scroll to a part of the page, leaving room for the bar above it."""
        self.run(
            f"scrollTo(0, document.querySelector({selector!r}).getBoundingClientRect().top"
            " + scrollY - 60)"
        )

    def open_case(self, search: str = "") -> None:
        """Open the first case that a search finds."""
        self.run(
            "const box = document.getElementById('case-search');"
            f"box.value = {search!r};"
            "box.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        self.wait("document.querySelector('#case-list tbody a')")
        self.run("document.querySelector('#case-list tbody a').click()")
        self.wait("document.getElementById('case').open")

    def take(self, path: Path) -> None:
        """Write what is in the window to a PNG file."""
        shot = self._driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browse(page: Path) -> Iterator[Reader]:
    """Start a browser for the length of a block."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        raise SystemExit("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new",
        "--no-sandbox",  # it cannot be had as root
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--hide-scrollbars",
        "--lang=en",
    ):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Reader(browser, page)
    finally:
        browser.quit()


def main() -> None:
    """Take all pictures of the gallery."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with browse(args.page) as reader:
        reader.open(DESKTOP, "light")
        reader.take(args.folder / "report-light.png")
        reader.go_to("#traces")
        reader.take(args.folder / "report-traces.png")
        reader.go_to("#cases")
        reader.take(args.folder / "report-cases.png")
        reader.open(DESKTOP, "dark")
        reader.open_case()
        reader.take(args.folder / "report-case-dark.png")
        reader.open(PHONE, "light")
        reader.open_case()
        reader.take(args.folder / "report-phone.png")


if __name__ == "__main__":
    main()
