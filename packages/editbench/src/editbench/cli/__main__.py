"""``python -m editbench.cli``: the same as ``editbench``."""

from editbench.cli import main

main()
