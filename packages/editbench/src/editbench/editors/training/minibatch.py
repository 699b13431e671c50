"""A step's facts, run part by part where memory does not suffice for all of them at once."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor

from editbench.editors.training.target_likelihood import TargetBatch
from editbench.editors.training.weight_trainer import Gradients, WeightTrainer
from editbench.models.out_of_memory import Halving

Result = TypeVar("Result")


class Minibatch:
    """Facts that one step is taken for.

    Where memory runs out they are divided, and stay so. The loss is a mean over facts, so gradients
    of parts, weighted by how many facts they have, add up to that of all but for rounding.

    Args:
        batch: The facts.
        n_together: How many of them run at once, at most; None is all.
    """

    def __init__(self, batch: TargetBatch, n_together: int | None = None) -> None:
        self.n_edits = n = batch.n_edits
        self._parts = [batch]
        if n_together is not None and n_together < n:
            starts = range(0, n, n_together)
            self._parts = [batch.part(range(n)[start : start + n_together]) for start in starts]

    def keep_states(self, layer: int, *, projection_adds: bool, verify: bool) -> int:
        """Run once what training leaves as it is; see `TargetBatch.keep_states`."""

        def keep(part: TargetBatch) -> int:
            return part.keep_states(layer, projection_adds=projection_adds, verify=verify)

        kept = list(self._go_through(Halving("states in front of what is trained"), keep))
        return sum(kept) if all(kept) else 0

    def measure(
        self, trainer: WeightTrainer, halving: Halving, enough: float
    ) -> tuple[float, Gradients | None]:
        """Measure the loss, and its gradients by what is trained.

        Args:
            trainer: Knows the parameters; they ask for gradients.
            halving: One for each pass over the facts.
            enough: With a loss below it no step will be taken, so that gradients may be left out.

        Returns:
            The loss, and gradients in float32, unless they were left out.

        Raises:
            DeviceMemoryError: There is not enough memory for a single fact.
        """

        def measure(part: TargetBatch) -> tuple[float, Gradients | None]:
            loss = part.loss() * (part.n_edits / self.n_edits)
            value = loss.item()
            is_whole = part.n_edits == self.n_edits
            return value, None if is_whole and value < enough else trainer.gradients(loss)

        total = 0.0
        totals: Gradients | None = None
        for value, gradients in self._go_through(halving, measure):
            total += value
            totals = _add(totals, gradients)
        return total, totals

    def _go_through(
        self, halving: Halving, work: Callable[[TargetBatch], Result]
    ) -> Iterator[Result]:
        """Do `work` on every part; a part that memory does not suffice for is divided for good."""
        pending, self._parts = self._parts[::-1], []
        while pending:
            batch = pending.pop()

            def on_part(
                places: Sequence[int], batch: TargetBatch = batch
            ) -> tuple[TargetBatch, Result]:
                part = batch if len(places) == batch.n_edits else batch.part(places)
                return part, work(part)

            for part, found in halving.run(range(batch.n_edits), on_part):
                self._parts.append(part)
                yield found


def _add(totals: Gradients | None, gradients: Gradients | None) -> Gradients | None:
    if totals is None or gradients is None:
        return gradients if totals is None else totals
    return [_add_one(*pair) for pair in zip(totals, gradients, strict=True)]


def _add_one(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    if total is None or gradient is None:
        return gradient if total is None else total
    return total.add_(gradient)
