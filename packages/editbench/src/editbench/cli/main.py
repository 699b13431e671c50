"""Puts the commands together, those of plugins included."""

import click

from editbench import __version__
from editbench.cli.apply import apply
from editbench.cli.cache import cache
from editbench.cli.check import check
from editbench.cli.completion import completion
from editbench.cli.doctor import doctor
from editbench.cli.edit import edit
from editbench.cli.gate import gate
from editbench.cli.group import EditbenchGroup
from editbench.cli.list import list_
from editbench.cli.report import report
from editbench.cli.reproduce import reproduce
from editbench.cli.run import run
from editbench.cli.show import diff, show
from editbench.cli.stats import stats
from editbench.cli.trace import trace
from editbench.cli.train import train
from editbench.cli.tune import tune
from editbench.plugins.manager import PluginManager

_HELP = """\
Edit facts in language models, and measure what the edits did.

\b
Start here, no download needed:
  editbench run                         MEMIT on the embedded model and world
  editbench list                        what there is to run

\b
Then, for instance:
  editbench run --model gpt2-xl --dataset counterfact --n-edits 1000
  editbench edit --model gpt2-xl --facts facts.jsonl --out edit.safetensors
  editbench apply --model gpt2-xl --edit edit.safetensors --out edited-gpt2-xl

Exit codes: 0 done; 1 some trials failed; 2 bad input; 130 interrupted.
"""


def build_cli(plugins: PluginManager) -> EditbenchGroup:
    """Make the command line; plugins may add commands of their own."""

    @click.group(
        cls=EditbenchGroup,
        name="editbench",
        help=_HELP,
        invoke_without_command=True,
        context_settings={
            "obj": plugins,
            "help_option_names": ["-h", "--help"],
            "max_content_width": 100,
        },
    )
    @click.version_option(__version__, prog_name="editbench")
    @click.pass_context
    def cli(context: click.Context) -> None:
        if context.invoked_subcommand is None:
            click.echo(context.get_help())

    for command in (run, edit, show, diff, gate, apply, reproduce, report):
        cli.add_command(command)
    for command in (stats, trace, train, tune, list_, check, cache, doctor, completion):
        cli.add_command(command)
    plugins.add_commands(cli)
    return cli
