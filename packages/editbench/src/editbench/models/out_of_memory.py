"""When a device's memory runs out: smaller parts, instead of the end of a long run."""

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from editbench.errors import DeviceMemoryError

Row = TypeVar("Row")
Result = TypeVar("Result")

# What libraries below torch say instead of raising its `OutOfMemoryError`.
_WORDS = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


class Halving:
    """Runs batches, in halves, quarters, … once memory has run out; later batches too.

    Batches are made to be about as large as each other, so what was too large for one of them is
    not tried again with the next. A warning is given once.

    Args:
        operation: What is being done, for the warning and the error.
    """

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self._n_parts = 1

    def run(self, rows: Sequence[Row], work: Callable[[Sequence[Row]], Result]) -> Iterator[Result]:
        """Do `work` on all of `rows`, or on one part after another.

        Args:
            rows: A batch.
            work: May be called again with a part of what it was called with before, if memory ran
                out; what it returned for other parts stands.

        Yields:
            What `work` returns, part by part, in the order of `rows`.

        Raises:
            DeviceMemoryError: Memory runs out even for a single row.
        """
        start = 0
        while start < len(rows):
            part = rows[start : start + -(-len(rows) // self._n_parts)]
            try:
                result = work(part)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise self._give_up(error) from error
            else:
                start += len(part)
                yield result
                continue
            # Not in the handler: the error holds on to every tensor of the work that failed.
            self._halve()

    def _halve(self) -> None:
        if self._n_parts == 1:
            warnings.warn(
                f"{self._operation}: memory ran out, so the work goes on in smaller parts. "
                "--max-memory makes them smaller from the start",
                stacklevel=2,
            )
        self._n_parts *= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _give_up(self, error: BaseException) -> DeviceMemoryError:
        said = " ".join(str(error).split()) or type(error).__name__
        return DeviceMemoryError(
            f"{self._operation}: memory runs out even for one row at a time, got: {said[:200]} "
            "Load the model with --dtype bfloat16, spread it with --device-map auto, or use "
            "--device cpu."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)
