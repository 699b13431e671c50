"""What an edit was made from: enough to make it again, with other facts, in seconds."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from editbench.requests import EditRequest, FactNotes, content_of

_STATES, _INITIAL = "targets/states", "targets/initial"

TENSORS = (_STATES, _INITIAL)
"""What the tensors of a recipe are called in an edit file; no parameter has such a name."""


@dataclass(frozen=True, eq=False)
class KeptTargets:
    """Target states under the keys that they have in a cache, row for row.

    Attributes:
        keys: Hash of all that a state depends on.
        states: z, float32 `[n, d_model]`, on the CPU.
        initial: h, likewise.
        losses: Total loss of each.
        n_steps: Forward passes that each took.
    """

    keys: tuple[str, ...]
    states: Tensor
    initial: Tensor
    losses: tuple[float, ...]
    n_steps: tuple[int, ...]

    @classmethod
    def of(cls, rows: Iterable[tuple[str, Tensor, Tensor, float, int]]) -> Self:
        """Put together what was found one by one."""
        columns = tuple(zip(*rows, strict=True)) or ((), (), (), (), ())
        keys, states, initial, losses, n_steps = columns
        empty = torch.empty(0, 0)
        return cls(
            keys,
            torch.stack(states) if states else empty,
            torch.stack(initial) if initial else empty,
            losses,
            n_steps,
        )

    def __iter__(self) -> Iterator[tuple[str, Tensor, Tensor, float, int]]:
        return zip(self.keys, self.states, self.initial, self.losses, self.n_steps, strict=True)


@dataclass(frozen=True, eq=False)
class EditRecipe:
    """What an edit was made from, besides the model and the editor's configuration.

    Attributes:
        requests: The facts, in the order in which they were written.
        seed: Source of every random choice.
        batch_size: How many facts were written at a time; None for all at once.
        inputs: What the editor was given, see `Inputs.content`.
        targets: The target states; none if they were not to be kept, or the editor has none.
    """

    requests: tuple[EditRequest, ...]
    seed: int
    batch_size: int | None
    inputs: Mapping[str, Any]
    targets: KeptTargets

    def encode(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What an edit file holds of it: JSON values, and tensors."""
        targets = self.targets
        content = {
            "facts": [_encode_request(request) for request in self.requests],
            "seed": self.seed,
            "batch_size": self.batch_size,
            "inputs": dict(self.inputs),
            "targets": {
                "keys": targets.keys,
                "losses": targets.losses,
                "n_steps": targets.n_steps,
            },
        }
        tensors = dict(zip(TENSORS, (targets.states, targets.initial), strict=True))
        return content, tensors if targets.keys else {}

    @classmethod
    def decode(cls, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `encode`.

        Raises:
            ValueError: Something is missing or of another form; the message says what.
        """
        try:
            targets = content["targets"]
            empty = torch.empty(0, 0)
            kept = KeptTargets(
                tuple(targets["keys"]),
                tensors.get(_STATES, empty),
                tensors.get(_INITIAL, empty),
                tuple(targets["losses"]),
                tuple(targets["n_steps"]),
            )
            n_kept = {len(part) for part in (kept.keys, kept.states, kept.initial, kept.losses)}
            if len(n_kept) > 1:
                raise ValueError(f"the numbers of target states differ, got {sorted(n_kept)}")
            return cls(
                tuple(_decode_request(fact) for fact in content["facts"]),
                int(content["seed"]),
                content["batch_size"],
                content["inputs"],
                kept,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{type(error).__name__} at {error}") from error


def _encode_request(request: EditRequest) -> dict[str, Any]:
    notes = {name: value for name, value in asdict(request.notes).items() if value is not None}
    return {**content_of(request), **({"notes": notes} if notes else {})}


def _decode_request(content: Mapping[str, Any]) -> EditRequest:
    return EditRequest(**{**content, "notes": FactNotes(**content.get("notes", {}))})
