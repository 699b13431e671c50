"""Help: quick, complete, and the same in the docs."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from editbench.cli.main import build_cli
from editbench.plugins import PluginManager

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "command-line.md"
CLI = build_cli(PluginManager())
COMMANDS = sorted(CLI.commands)

HEAVY = [
    "torch", "transformers", "pandas", "numpy", "pydantic", "rich", "yaml", "safetensors", "jinja2",
    "matplotlib", "ray", "optuna",
]  # fmt: skip


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], []])
def test_help_imports_nothing_heavy(arguments):
    program = (
        "import sys\n"
        "from editbench.cli import main\n"
        "try:\n    main()\nexcept SystemExit as exit:\n    assert not exit.code, exit.code\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"


def test_help_is_quick():
    # Processor time, which other work on the machine does not stretch; the best of three.
    program = "import time; from editbench.cli.main import build_cli; print(time.process_time())"
    seconds = [
        float(
            subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
        )
        for _ in range(3)
    ]
    assert min(seconds) < 0.5


def test_all_commands_are_there():
    assert COMMANDS == [
        "apply", "cache", "check", "completion", "diff", "doctor", "edit", "gate", "list", "report",
        "reproduce", "run", "show", "stats", "trace", "train", "tune",
    ]  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps_with_an_example(invoke, name):
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert f"editbench {name}" in result.stdout.partition("Options:")[2]  # the examples


def options_of(command):
    """The options of a command, and of the commands in it."""
    inner = command.commands.values() if isinstance(command, click.Group) else ()
    own = [each for each in command.params if isinstance(each, click.Option)]
    return own + [option for each in inner for option in options_of(each)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text(name):
    options = options_of(CLI.commands[name])
    assert [each.name for each in options if not each.help] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name):
    text = REFERENCE.read_text(encoding="utf-8")
    section = re.search(rf"^## `editbench {name}`$(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert section, f"{REFERENCE} has no section on {name}"
    shared = "".join(re.findall(r"^## Options .*?$(.*?)(?=^## |\Z)", text, re.M | re.S))
    documented = set(re.findall(r"`(-[-\w]+)", section[1])) | set(re.findall(r"`(-[-\w]+)", shared))
    for parameter in options_of(CLI.commands[name]):
        for option in [*parameter.opts, *parameter.secondary_opts]:
            assert option in documented, f"{name} {option} is not in {REFERENCE}"


def test_nothing_is_documented_that_is_not_there():
    text = REFERENCE.read_text(encoding="utf-8")
    known = {"--help", "-h", "--version"}
    for command in CLI.commands.values():
        for parameter in options_of(command):
            known |= {*parameter.opts, *parameter.secondary_opts}
    sections = text[text.index("## `editbench") :]
    assert set(re.findall(r"`(--[-\w]+)", sections)) <= known
