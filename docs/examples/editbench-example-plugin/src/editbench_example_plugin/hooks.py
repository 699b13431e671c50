"""What the entry point refers to: functions that say what the plugin adds.

Imports stand inside the hooks, so that a command that needs neither does not wait for torch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editbench.plugins import hookimpl

if TYPE_CHECKING:
    from editbench.editors.base import Editor
    from editbench.metrics.base import Metric


@hookimpl
def editbench_register_editors() -> "Sequence[type[Editor]]":
    """Register the editors."""
    from editbench_example_plugin.clipped import Clipped
    from editbench_example_plugin.gradient_step import GradientStep

    return [GradientStep, Clipped]


@hookimpl
def editbench_register_metrics() -> "Sequence[type[Metric]]":
    """Register the metric."""
    from editbench_example_plugin.margin import Margin

    return [Margin]
