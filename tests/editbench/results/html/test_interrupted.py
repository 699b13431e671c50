"""A process that dies, or has no room left, while it writes the page: never a broken one."""

import os
import subprocess
import sys

import pytest

from editbench.files.whole_files import write_whole

WRITE = """
import resource, signal, sys
from editbench.cli import main

death, run, page = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
if death == "killed":  # by the kernel, in the middle of a write; nothing is cleaned up
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
sys.argv = ["editbench", "report", run, "--html", page]
main()
"""


@pytest.fixture(scope="module")
def run(write_cases):
    return write_cases(20)


def write(death, run, page):
    command = [sys.executable, "-c", WRITE, death, str(run), str(page)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of a process")
@pytest.mark.parametrize(
    ("death", "old"), [("killed", None), ("killed", "an old report"), ("full", "an old report")]
)
def test_the_old_report_stays_or_none_is_there(death, old, run, make_page, tmp_path):
    page = tmp_path / "report.html"
    if old is not None:
        page.write_text(old)
    ended = write(death, run, page)
    if death == "killed":
        assert ended.returncode < 0
        (leftover,) = set(tmp_path.iterdir()) - {page}
        assert leftover.stat().st_size == 20_000  # it did die in the middle
    else:
        assert "report.html" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert ended.returncode == 2
        assert list(tmp_path.iterdir()) == [page]
    assert (page.read_text() if page.exists() else None) == old

    # The next one takes the place of the report, and a day later of what is left of the dead one.
    for leftover in set(tmp_path.iterdir()) - {page}:
        os.utime(leftover, (0, 0))
    write_whole(page, make_page(run).html)
    assert list(tmp_path.iterdir()) == [page]
    assert page.read_text(encoding="utf-8").rstrip().endswith("</html>")
