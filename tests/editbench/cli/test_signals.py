"""What the real program does when it is interrupted, or its reader leaves."""

import os
import signal
import subprocess
import sys
import time

import pytest

# What a shell starts in the background, this suite perhaps, ignores interrupts from birth.
LISTEN = """import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"""


@pytest.fixture
def start(tmp_path):
    """Starts the program in an empty folder, as a user does."""
    environment = {**os.environ, "EDITBENCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def begin(*arguments):
        return subprocess.Popen(
            [sys.executable, "-c", LISTEN, "-m", "editbench.cli", *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return begin


def test_ctrl_c_ends_the_program_cleanly(
    start, invoke, model_folder, facts_file, moments_file, tmp_path
):
    program = start(
        "run", "--model", model_folder, "--dataset", f"facts={facts_file}", "--n-edits", "3",
        "--second-moments", moments_file, "--set", "memit.critical_layers=[1,2]",
        "--set", "memit.n_steps=1000000", "--set", "memit.stop_loss=-1", "--out", "here",
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("here/trials/*/trial.json")):  # the unedited model comes first
        assert program.poll() is None, program.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("Interrupted: 1 of 2 trials are finished and kept in")
    assert "unedited" in invoke("report", "here").stdout


def test_reader_that_leaves_early_is_no_error(start):
    program = start("run", "--help")
    program.stdout.close()
    errors = program.stderr.read()
    program.stderr.close()
    assert (program.wait(timeout=120), errors) == (141, "")
