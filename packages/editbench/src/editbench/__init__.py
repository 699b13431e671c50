"""Run any model editor on any model and dataset, and measure what it did.

From Python: `load_model`, `edit` and `evaluate`. They are imported when they are asked for, so that
importing the package is quick.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editbench.workbench import edit, evaluate, load_model

__all__ = ["__version__", "edit", "evaluate", "load_model"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        from editbench import workbench

        return getattr(workbench, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
