"""Settings of Sphinx. Build with ``make docs``; the pages are MyST Markdown."""

import inspect
from importlib.metadata import version as installed_version

from sphinx.application import Sphinx

project = "memit-core and editbench"
author = "The memit-core and editbench developers"
project_copyright = f"2026, {author}"
version = release = installed_version("editbench")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build", "examples", "results/tables", "results/real"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

# Docstrings say `code` with single backticks.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "memit-core and editbench"
html_copy_source = False


def keep_property_docstring(
    app: Sphinx, what: str, name: str, subject: object, options: object, lines: list[str]
) -> None:
    """Undo napoleon's reading of a property's first sentence as ``type: description``."""
    text = inspect.getdoc(subject) or ""
    if what == "property" and ":\n" not in text:
        lines[:] = [*text.splitlines(), ""]


def setup(app: Sphinx) -> None:
    """Run after napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", keep_property_docstring, priority=600)
