"""The slot of preservation: what must not move, layer by layer, through one stream of edits."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path

import torch
from torch import Tensor

from editbench.editors.closed_form.dials import Dials
from editbench.edits.files import Update
from editbench.edits.weight_edit import make_dense
from editbench.models.out_of_memory import else_on_cpu
from editbench.second_moments.factors import (
    find_live,
    obtain_factor,
    require_factor,
)
from editbench.second_moments.obtaining import LayerMoments
from memit_core import (
    IllPosedError,
    Preservation,
    UpdateFactors,
    find_float64_device,
    find_null_space,
    solve_edits,
)

_CLOSED = 1e-2  # of what a fact asks for: if no layer can give more, it is lost

# EvoEdit's: with less of all keys, or of all that is missing, a batch goes no further. They are
# absolute, but where keys or states are shorter than 1.
_NOTHING_OPEN = 1e-3
_NOTHING_MISSING = 1e-2


@dataclass(frozen=True)
class _Rows:
    """Keys of facts, and their places in the stream."""

    places: Sequence[int]
    keys: Tensor

    def without(self, places: Collection[int]) -> "_Rows":
        stays = [place not in places for place in self.places]
        if all(stays):
            return self
        return _Rows(list(compress(self.places, stays)), self.keys[torch.tensor(stays)])


class PreservedValues:
    """What moving ordinary values and those of earlier edits costs, and updates at that price.

    C is read when it is needed; its factors come from the cache, or are made where nothing else
    will do, and in a stream once. What was written before is worked out row by row, once for each,
    and becomes a part of the factors when there is much of it: a batch costs the same however many
    came before it.

    Args:
        moments: Second moments of all layers.
        dials: How they are preserved.
        cache: Where factors are kept; None keeps and uses none.
    """

    def __init__(self, moments: LayerMoments, dials: Dials, cache: Path | None) -> None:
        self._moments = moments
        self._dials = dials
        self._cache = cache
        self._written: dict[int, list[_Rows]] = {}
        self._fresh: dict[int, list[Tensor]] = {}  # what of it no kept price has
        self._prices: dict[int, Preservation] = {}
        self._asked: set[int] = set()
        self._errors: dict[int, Tensor] = {}
        self._systems: dict[int, Callable[[Tensor], Tensor]] = {}
        self._bases: dict[int, Tensor] = {}
        self._taken: dict[int, Tensor] = {}  # of a null space that shrinks
        self._ridges: dict[int, float] = {}
        self._factor: Preservation | None = None

    def solve(
        self, layer: int, keys: Tensor, residuals: Tensor, slack: float | None = None
    ) -> UpdateFactors | Tensor:
        """Solve for the update of one layer, on the device of `keys`.

        Where that has too little memory for matrices of d_key × d_key, it is done on the CPU.

        Dimensions that neither ordinary text nor an edit ever uses are left out. ReLU models have
        neurons that never fire. They make C singular, yet nothing can depend on what the update
        says about them: of all solutions, this is the one that says nothing. Where residuals are
        met exactly, what keys have there is left out, too: C knows no price of writing to it, and
        the rest suffices.

        Args:
            layer: The layer.
            keys: K, `[n_edits, d_key]`.
            residuals: R, `[n_edits, d_value]`.
            slack: α, if it is not the dials'.

        Returns:
            Δ: as factors of rank n_edits if that is less than either of its sides, else dense.

        Raises:
            MemitCoreError: The system is singular, or something is not finite.
            SecondMomentError: A factor cannot be written, or not be made where it has to be.
        """
        slack = self._dials.slack if slack is None else slack

        def solve(device: torch.device) -> UpdateFactors | Tensor:
            rows, error = self._open_part(layer, keys.to(device)), self._errors.get(layer)
            price = self._price(layer, rows, slack)
            if self._dials.error_feedback:
                self._systems[layer] = partial(_multiply, price, rows, slack)
            if error is not None:
                error = self._open_part(layer, error.to(device))
            return solve_edits(rows, residuals.to(device), price, slack=slack, error=error)

        try:
            return else_on_cpu(f"solving for the update of layer {layer}", keys.device, solve)
        except IllPosedError as error:
            if not self._moments.source:
                raise
            message = f"{error} The second moments are those of {self._moments.source}."
            raise IllPosedError(message) from error

    def add(self, layer: int, keys: Tensor, first: int = 0) -> None:
        """Note that `keys` `[n_edits, d_key]` have been written to, of facts from `first` on."""
        if not (self._dials.history or self._dials.null_space_shrinks):
            return
        keys = keys.cpu()
        self._written.setdefault(layer, []).append(_Rows(range(first, first + len(keys)), keys))
        if self._dials.null_space_shrinks:
            self._take(layer, keys)
        else:
            self._fresh.setdefault(layer, []).append(keys)

    def forget(self, places: Collection[int]) -> None:
        """Let facts go that others have taken the places of: as if they had never been added.

        What was solved for with them stays as it is, and so do errors that are fed back.
        """
        for layer, written in self._written.items():
            left = [rows.without(places) for rows in written]
            self._written[layer] = [rows for rows in left if len(rows.keys)]
            self._prices.pop(layer, None)
            self._fresh.pop(layer, None)
            if self._taken.pop(layer, None) is not None:
                for rows in self._written[layer]:
                    self._take(layer, rows.keys)

    def add_again(self, layer: int, keys: Tensor, slack: float, first: int = 0) -> None:
        """Do to prices what `solve` and `add` did, when `keys` were written in an earlier stream.

        Prices then have the same bits; what else is carried `go_on_from` takes back.
        """

        def ask(device: torch.device) -> None:
            self._price(layer, self._open_part(layer, keys.to(device)), slack)

        if self._keeps:
            else_on_cpu(f"solving for the update of layer {layer}", keys.device, ask)
        self._asked.add(layer)
        self.add(layer, keys, first)

    @property
    def carried(self) -> dict[str, Tensor]:
        """What no keys tell: errors to feed back, and what was taken from null spaces."""
        named = {"error": self._errors, "taken": self._taken}
        return {f"{name}.{layer}": each for name, of in named.items() for layer, each in of.items()}

    def go_on_from(self, carried: Mapping[str, Tensor]) -> None:
        """Take `carried` back."""
        for name, tensor in carried.items():
            kind, _, layer = name.partition(".")
            (self._errors if kind == "error" else self._taken)[int(layer)] = tensor

    def feed_back(self, layer: int, solution: Update, finished: Update) -> None:
        """Note what finishing has made of the solution that came last for a layer."""
        if self._dials.error_feedback:
            lost = make_dense(finished) - make_dense(solution)
            self._errors[layer] = self._systems.pop(layer)(lost)

    def is_open(self, layer: int, keys: Tensor) -> Tensor:
        """Of each key, whether what is asked for can be written to it, bool `[n_edits]`.

        It cannot where a key by itself would get less than a hundredth of it.
        """
        if self._dials.null_space is None:
            return torch.ones(len(keys), dtype=torch.bool)
        reached = self._inside(layer, keys).square().sum(dim=1)
        return reached > _CLOSED * (reached + self._dials.slack * self._ridge(layer))

    def is_exhausted(self, layer: int, keys: Tensor, target: Tensor, current: Tensor) -> bool:
        """Whether a batch ends in front of a layer: nothing is open to it, or nothing is missing.

        So it is with null spaces that shrink (EvoEdit), and with no others.

        Args:
            layer: The layer.
            keys: K, `[n_edits, d_key]`.
            target: z, `[n_edits, d_value]`.
            current: h, likewise.
        """
        if not self._dials.null_space_shrinks:
            return False
        missing, size = (float(rows.norm(dim=1).mean()) for rows in (target - current, target))
        is_reached = missing < _NOTHING_MISSING * min(1.0, size)
        length = float(keys.norm())
        return is_reached or float(self._inside(layer, keys).norm()) < _NOTHING_OPEN * min(
            1, length
        )

    def _take(self, layer: int, keys: Tensor) -> None:
        """Take out of a null space what keys have in it."""
        open_part = self._open_part(layer, keys.double())
        taken = _find_span(self._null_space(layer, open_part.device), open_part)
        earlier = self._taken.get(layer, taken[:, :0])
        self._taken[layer] = torch.cat([earlier, taken], dim=1)

    def _inside(self, layer: int, keys: Tensor) -> Tensor:
        """Keys in the coordinates of the null space, `[n_edits, rank]`."""
        wide = self._open_part(layer, keys.cpu().double())
        return wide @ self._null_space(layer, wide.device)

    def _open_part(self, layer: int, rows: Tensor) -> Tensor:
        """What is left of rows `[n, d_key]` without what was taken from the null space."""
        if (taken := self._taken.get(layer)) is None:
            return rows
        taken = taken.to(rows.device)
        return rows.double() - (rows.double() @ taken) @ taken.mT

    def _price(self, layer: int, keys: Tensor, slack: float) -> Preservation:
        """What an update costs now; from a stream's second batch on, what takes long is kept."""
        if layer not in self._asked:
            first = self._make_price(layer, keys, slack)
            self._asked.add(layer)
            return first
        price, fresh = self._prices.get(layer), self._fresh.get(layer, [])
        if price is None or not _lie_in(price.basis, keys):
            fresh = [rows.keys for rows in self._written.get(layer, [])]
            rows = torch.cat([*(each.to(keys) for each in fresh), keys])
            price = self._make_price(layer, rows, slack)
            if self._keeps and not self._dials.error_feedback:
                with suppress(IllPosedError):  # axes that only edits use make it singular
                    price = price.factorized(keys.device)
        price = price.to(keys.device)
        if fresh:
            price = price.with_history(torch.cat(fresh).to(keys.device))
            is_plain = isinstance(price.second_moment, Tensor)
            # Up to here it is cheaper beside the factors than in them.
            if is_plain or self._dials.error_feedback or self._is_long(price, keys.shape[1]):
                price = price.absorbed()
            else:
                price.written(price.device or find_float64_device(keys.device))
        if self._keeps:
            place = keys.device if len(self._moments) == 1 else torch.device("cpu")
            self._prices[layer] = price.to(place)
            self._fresh.pop(layer, None)
        return price

    @property
    def _keeps(self) -> bool:
        """Whether prices are kept from batch to batch: else their factors are in the cache."""
        return self._dials.history or self._cache is None

    @staticmethod
    def _is_long(price: Preservation, d_key: int) -> bool:
        return price.history is not None and len(price.history) > price.rank(d_key) // 2

    def _make_price(self, layer: int, rows: Tensor, slack: float) -> Preservation:
        """What an update costs without history, for rows that are to be in its basis."""
        dials = self._dials
        if dials.null_space is not None:
            directions = self._null_space(layer, rows.device)
            return Preservation(None, ridge=self._ridge(layer), basis=directions)
        factor = self._factor
        if factor is None and dials.ridge == 0 and not dials.error_feedback:
            if slack == 0:
                factor = require_factor(self._moments, layer, self._cache, rows.device)
            # Up to here the dual with C factorized takes fewer operations than the primal without.
            elif len(rows) <= rows.shape[1] // 2 or layer in self._asked:
                factor = obtain_factor(self._moments, layer, self._cache, rows.device)
            if len(self._moments) == 1:
                self._factor = factor
        if factor is not None and (slack == 0 or _lie_in(factor.basis, rows)):
            return Preservation(factor.second_moment, weight=dials.weight, basis=factor.basis)
        plain = self._moments[layer]
        if dials.ridge > 0:  # which is the price of axes that nothing uses
            return Preservation(plain, weight=dials.weight, ridge=self._ridge(layer))
        axes = find_live(plain, layer).to(rows.device) | rows.ne(0).any(dim=0)
        return Preservation(plain, weight=dials.weight, basis=axes)

    def _ridge(self, layer: int) -> float:
        """ρ, in absolute numbers."""
        if self._dials.ridge_unit == "absolute":
            return self._dials.ridge
        if layer not in self._ridges:
            mean = self._moments[layer].diagonal().double().mean()
            self._ridges[layer] = self._dials.ridge * float(mean)
        return self._ridges[layer]

    def _null_space(self, layer: int, device: torch.device) -> Tensor:
        """The basis of a layer, on the CPU; found on `device`, once."""
        assert self._dials.null_space is not None
        if layer not in self._bases:
            moment = self._moments[layer].to(device)
            self._bases[layer] = find_null_space(moment, *self._dials.null_space).cpu()
        return self._bases[layer]


def _find_span(basis: Tensor, keys: Tensor) -> Tensor:
    """Orthonormal columns `[d_key, n]` that span what keys have in a basis.

    What is smaller than float32 can tell from zero is none of it: keys are no more exact, and its
    direction would be noise.
    """
    inside = keys @ basis
    columns, sizes, _ = torch.linalg.svd(inside.mT, full_matrices=False)
    rounding = max(keys.shape) * torch.finfo(torch.float32).eps * sizes[0]
    return basis @ columns[:, sizes > max(float(rounding), 1e-10)]


def _multiply(price: Preservation, keys: Tensor, slack: float, update: Tensor) -> Tensor:
    """Return Δ (M + KᵀK/α)."""
    rows = keys.to(update)
    return price.times(update) + (update @ rows.mT) @ rows / slack


def _lie_in(axes: Tensor | None, keys: Tensor) -> bool:
    """Whether keys have no part on axes that are left out; bases of directions are for all keys."""
    if axes is None or axes.dtype != torch.bool:
        return True
    return not bool(keys[:, ~axes.to(keys.device)].any())
