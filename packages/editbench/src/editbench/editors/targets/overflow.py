"""Target hidden states that are no numbers: half precision overflows, and some steps are too long.

They are found, and kept out of the cache, where they are computed; editors refuse them, since an
edit made from them would be NaN throughout.
"""

from collections.abc import Sequence

import torch

from editbench.editors.targets.optimizer import FinishedTarget
from editbench.errors import EditError
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest

_N_NAMED = 3


def is_finite(outcome: FinishedTarget) -> bool:
    """Whether an outcome is usable: its state is finite, and so is its loss.

    With a loss that is not, the state may be, since no step could be taken from there.
    """
    return bool(torch.isfinite(outcome.state).all()) and abs(outcome.loss) < float("inf")


def refuse_overflowed(
    editor: str,
    model: EditableModel,
    requests: Sequence[EditRequest],
    finite: Sequence[bool],
) -> None:
    """Refuse an edit of which some target hidden states are not finite.

    Args:
        editor: The editor's name, for the message.
        model: The model that they were optimized on.
        requests: The facts.
        finite: Of each fact, whether its state and loss are finite.

    Raises:
        EditError: One is not. The message names some of the requests and the model's dtype, and
            says how to mend it.
    """
    overflowed = [one for one, is_good in zip(requests, finite, strict=True) if not is_good]
    if not overflowed:
        return
    named = ", ".join(f"'{one.text}' → '{one.target}'" for one in overflowed[:_N_NAMED])
    more = len(overflowed) - _N_NAMED
    rest = f" and {more} more" if more > 0 else ""
    dtype = str(model.model.dtype).removeprefix("torch.")
    mend = "Lower the learning rate (learning_rate)"
    if model.model.dtype == torch.float16:  # its largest number is 65,504
        mend = f"Load the model with --dtype float32 or bfloat16, or l{mend[1:]}"
    raise EditError(
        f"{editor} on '{model.name}': the target hidden states of {len(overflowed)} of "
        f"{len(requests)} requests are not finite, got NaN or infinity in {dtype} for "
        f"{named}{rest}. {mend}."
    )
