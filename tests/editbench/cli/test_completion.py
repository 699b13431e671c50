"""Shells complete commands, options, and names of what plugins register."""

import os
import shutil
import subprocess
import sys

import pytest
from click.shell_completion import BashComplete

from editbench.cli.main import build_cli
from editbench.plugins import PluginManager

VARIABLE = "_EDITBENCH_COMPLETE"


def complete(words: str, plugins=()) -> list[tuple[str, str]]:
    """Type and value of what is offered for the last of the words."""
    manager = PluginManager(plugins)
    bash = BashComplete(build_cli(manager), {"obj": manager}, "editbench", VARIABLE)
    *before, begun = words.split(" ")
    return [(item.type, item.value) for item in bash.get_completions(before[1:], begun)]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("editbench comp", "completion"),
        ("editbench run --batch", "--batch-size"),
        ("editbench run --model smol", "smollm2-135m-gguf"),
        ("editbench edit --editor memit-h", "memit-history"),
        ("editbench check ro", "rome"),
        ("editbench tune --dataset mqu", "mquake-remastered"),
        ("editbench run --metrics success,acc", "success,accuracy"),
    ],
)
def test_what_is_begun_is_completed(words, offered):
    assert ("plain", offered) in complete(words)


def test_what_is_no_name_may_be_a_path():
    assert complete("editbench run --model ./mod") == [("file", "./mod")]


def test_names_of_plugins_are_completed(nudging):
    assert ("plain", "nudge") in complete("editbench run --editor nu", plugins=[nudging])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_of_the_shell(invoke, shell):
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert VARIABLE in result.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=result.stdout, text=True, check=True)


def test_the_program_answers_a_shell():
    program = "from editbench.cli import main; main()"
    asked = {VARIABLE: "bash_complete", "COMP_WORDS": "editbench tu", "COMP_CWORD": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (answer.stdout, answer.stderr) == ("plain,tune\n", "")
