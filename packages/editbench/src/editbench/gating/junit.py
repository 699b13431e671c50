"""Verdicts as JUnit XML, which continuous integration reads."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from editbench.gating.verdict import PerplexityVerdict, Verdict

_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(
    suite: str, verdicts: Sequence[Verdict], perplexity: PerplexityVerdict | None
) -> str:
    """Write a test suite with a test case for each verdict.

    Args:
        suite: What it is called.
        verdicts: Those of checks.
        perplexity: That of held-out text, if there is one.
    """
    cases = [(v.check.kind, f"{v.check.place}: {v.check.prompt}", v) for v in verdicts]
    named: list[tuple[str, str, Verdict | PerplexityVerdict]] = [*cases]
    if perplexity is not None:
        named.append(("perplexity", "held-out text", perplexity))
    n_failures = sum(not verdict.holds for _, _, verdict in named)
    attributes = {"name": _clean(suite), "tests": str(len(named)), "failures": str(n_failures)}
    root = ElementTree.Element("testsuites")
    element = ElementTree.SubElement(root, "testsuite", {**attributes, "errors": "0"})
    for kind, name, verdict in named:
        case = ElementTree.SubElement(
            element, "testcase", {"classname": kind, "name": _clean(name)}
        )
        if not verdict.holds:
            message = _clean(verdict.problem)
            ElementTree.SubElement(case, "failure", {"message": message}).text = message
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _clean(text: str) -> str:
    """The text without the characters that XML has no form for."""
    return _FORBIDDEN.sub("\ufffd", text)
