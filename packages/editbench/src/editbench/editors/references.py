"""The papers behind the editors, as BibTeX."""

import functools
import re
from importlib.resources import files


@functools.cache
def read_references() -> dict[str, str]:
    """The entries of ``references.bib``, by key."""
    text = files("editbench.editors").joinpath("references.bib").read_text(encoding="utf-8")
    entries = [entry.strip() for entry in text.split("\n\n")]
    return {re.findall(r"^@\w+{([^,]+),", entry)[0]: entry for entry in entries}


def cite(key: str) -> str:
    """The entry with a key."""
    return read_references()[key]
