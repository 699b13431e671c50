"""What is printed for people: as wide as the terminal, and as wide as it needs elsewhere."""

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

_UNLIMITED_WIDTH = 10_000


def terminal_width() -> int:
    """How many columns the terminal has that stdout is; as good as unlimited elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNLIMITED_WIDTH


def lay_out(*parts: "RenderableType") -> str:
    """Text and tables as one string, styled in a terminal."""
    from rich.console import Console

    # Without a height rich takes a terminal that says little of itself to be 80 columns wide.
    console = Console(width=terminal_width(), height=25)
    with console.capture() as capture:
        for part in parts:
            console.print(part, markup=False, highlight=False)
    return capture.get()


def wrap(line: str, indent: int) -> str:
    """Break a line between words where the terminal ends; what follows is indented."""
    return "\n".join(
        textwrap.wrap(
            line,
            max(terminal_width(), indent + 1),
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )
