"""When a device's memory runs out: smaller parts, instead of the end of a long run.

What can be divided goes through `Halving`, what cannot but need not be done on the device through
`else_on_cpu`; around all of it, `explaining_out_of_memory` says what to do when nothing helps.
"""

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import TypeVar

import torch

from editbench.errors import DeviceMemoryError

Row = TypeVar("Row")
Divisible = TypeVar("Divisible", bound=Sized)
Result = TypeVar("Result")

# What libraries below torch say instead of raising its `OutOfMemoryError`.
_WORDS = (
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)
# What may say so: work may hold other work, which has been divided as far as it can be.
_MAY_BE = (RuntimeError, MemoryError, DeviceMemoryError)


class Halving:
    """Runs batches, in halves, quarters, … once memory has run out; later batches too.

    Batches are made to be about as large as each other, so what was too large for one of them is
    not tried again with the next. A warning is given once.

    Where batches are gone through many times, and replaced by their parts once they had to be
    divided, each pass takes a new one of these: the old one would divide the parts again.
    """

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self._n_parts = 1

    def run(self, rows: Sequence[Row], work: Callable[[Sequence[Row]], Result]) -> Iterator[Result]:
        """Do `work` on all of `rows`, or on one part after another, and yield what it returns.

        `work` may be called again with a part of what it was called with before, if memory ran out;
        what it returned for other parts stands.

        Raises:
            DeviceMemoryError: Memory runs out even for a single row.
        """
        start = 0
        while start < len(rows):
            part = rows[start : start + -(-len(rows) // self._n_parts)]
            try:
                result = work(part)
            except _MAY_BE as error:
                if not is_out_of_memory(error):
                    raise
                if isinstance(error, DeviceMemoryError) and len(part) == 1:
                    raise
                if len(part) == 1:
                    how = "even for one row at a time"
                    raise _explained(self._operation, how, error) from error
            else:
                start += len(part)
                yield result
                del result  # it is not to be there while the next part is worked on
                continue
            # Not in the handler: the error holds on to every tensor of the work that failed.
            self._halve()

    def run_all(
        self,
        batches: list[Divisible],
        work: Callable[[Divisible], Result],
        divide: Callable[[Divisible, Sequence[int]], Divisible],
    ) -> Iterator[Result]:
        """Do `work` on all batches; one that memory does not suffice for is divided for good.

        Args:
            batches: The batches, from now on divided as far as they had to be. What is divided is
                dropped as soon as its parts are done.
            work: See `run`.
            divide: Makes a batch of some of another one's rows.

        Yields:
            What `work` returns, in the order of the batches.

        Raises:
            DeviceMemoryError: Memory runs out even for a single row.
        """
        pending = batches[::-1]
        batches.clear()
        while pending:
            batch = pending.pop()

            def on_part(
                places: Sequence[int], batch: Divisible = batch
            ) -> tuple[Divisible, Result]:
                part = batch if len(places) == len(batch) else divide(batch, places)
                return part, work(part)

            for part, found in self.run(range(len(batch)), on_part):
                batches.append(part)
                yield found

    def _halve(self) -> None:
        if self._n_parts == 1:
            warnings.warn(
                f"{self._operation}: memory ran out, so the work goes on in smaller parts. "
                "--max-memory makes them smaller from the start",
                stacklevel=2,
            )
        self._n_parts *= 2
        free_memory_of_errors()


def else_on_cpu(
    operation: str, device: torch.device, work: Callable[[torch.device], Result]
) -> Result:
    """Do work that cannot be divided on a device, or on the CPU if the device runs out of memory.

    `work` does it on the device that it is given, and may be called twice.
    """
    if device.type != "cpu":
        try:
            return work(device)
        except _MAY_BE as error:
            if not is_out_of_memory(error):
                raise
        # Not in the handler: the error holds on to every tensor of the work that failed.
        free_memory_of_errors()
        warnings.warn(
            f"{operation}: memory ran out on {device}, so it is done on the CPU, which takes "
            "longer",
            stacklevel=2,
        )
    return work(torch.device("cpu"))


@contextmanager
def explaining_out_of_memory(operation: str) -> Iterator[None]:
    """Turn an error that says that memory ran out into one that says what to do.

    Raises:
        DeviceMemoryError: Memory ran out.
    """
    try:
        yield
    except _MAY_BE as error:
        if isinstance(error, DeviceMemoryError) or not is_out_of_memory(error):
            raise
        raise _explained(operation, "and the work cannot be divided", error) from error


def free_memory_of_errors() -> None:
    """Give back what work that failed has left, once nothing holds on to its error any more.

    Frames of a traceback and the error are often rings, which Python frees late.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | DeviceMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def _explained(operation: str, how: str, error: BaseException) -> DeviceMemoryError:
    said = " ".join(str(error).split()) or type(error).__name__
    return DeviceMemoryError(
        f"{operation}: memory runs out {how}, got: {said[:200]} "
        "Load the model with --dtype bfloat16, spread it with --device-map auto, or use "
        "--device cpu."
    )
