"""A step's facts, run part by part where memory does not suffice for all of them at once."""

from torch import Tensor

from editbench.editors.training.target_likelihood import TargetBatch
from editbench.editors.training.weight_trainer import Gradients, WeightTrainer
from editbench.models.out_of_memory import Halving


class Minibatch:
    """Facts that one step is taken for.

    Where memory runs out they are divided, and stay so. The loss is a mean over facts, so gradients
    of parts, weighted by how many facts they have, add up to that of all but for rounding.

    Args:
        batch: The facts.
        n_together: How many of them run at once, at most; None is all.
    """

    def __init__(self, batch: TargetBatch, n_together: int | None = None) -> None:
        self.n_edits = n = len(batch)
        self._parts = [batch]
        if n_together is not None and n_together < n:
            starts = range(0, n, n_together)
            self._parts = [batch.part(range(n)[start : start + n_together]) for start in starts]

    def keep_states(self, layer: int, *, projection_adds: bool, verify: bool) -> int:
        """Run once what training leaves as it is; see `TargetBatch.keep_states`."""

        def keep(part: TargetBatch) -> int:
            return part.keep_states(layer, projection_adds=projection_adds, verify=verify)

        halving = Halving("states in front of what is trained")
        kept = list(halving.run_all(self._parts, keep, TargetBatch.part))
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
            loss = part.loss() * (len(part) / self.n_edits)
            value = loss.item()
            is_whole = len(part) == self.n_edits
            return value, None if is_whole and value < enough else trainer.gradients(loss)

        total = 0.0
        totals: Gradients | None = None
        for value, gradients in halving.run_all(self._parts, measure, TargetBatch.part):
            total += value
            totals = _add(totals, gradients)
        return total, totals


def _add(totals: Gradients | None, gradients: Gradients | None) -> Gradients | None:
    if totals is None or gradients is None:
        return gradients if totals is None else totals
    return [_add_one(*pair) for pair in zip(totals, gradients, strict=True)]


def _add_one(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    if total is None or gradient is None:
        return gradient if total is None else total
    return total.add_(gradient)
