"""The command line.

Nothing here may import torch, transformers or pandas before a command needs it: ``editbench
--help`` answers at once.
"""

import sys

from editbench.cli.main import build_cli


def main() -> None:
    """Run the command line; the entry point of the console script ``editbench``."""
    from editbench.plugins import load_plugins

    try:
        plugins = load_plugins()
    except KeyboardInterrupt:
        sys.exit(130)
    build_cli(plugins).main(prog_name="editbench", obj=plugins)
