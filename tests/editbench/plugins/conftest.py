import importlib
import itertools
import textwrap
from importlib.metadata import EntryPoint

import pytest

_numbers = itertools.count()


@pytest.fixture
def write_plugin(tmp_path, monkeypatch):
    """Writes a plugin module, and returns an entry point to it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, source):
        module = f"plugin_of_test_{next(_numbers)}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        importlib.invalidate_caches()
        return EntryPoint(name, module, "editbench")

    return write


@pytest.fixture
def write_metric_plugin(write_plugin):
    """Writes a plugin that registers one metric."""

    def write(name, metric):
        return write_plugin(
            name,
            f"""
            from editbench.metrics.base import Metric
            from editbench.plugins import hookimpl

            class OfTest(Metric):
                name = "{metric}"
                produces = ("of_test",)
                def questions(self, case): return ()
                def values(self, case, answers): return {{}}

            @hookimpl
            def editbench_register_metrics():
                return [OfTest]
            """,
        )

    return write
