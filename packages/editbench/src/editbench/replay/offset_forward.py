"""The model as a function of offsets: hidden-state offsets go in, logits at chosen places come out.

Every row of a batch gets one offset δ, added at one position to what a module puts out: a block, or
the MLP inside of it. Two implementations give the same numbers: `FullForward` runs the whole model
on whole rows and is the oracle; `SuffixReplay` runs only what the offset can reach.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from editbench.models.editable import EditableModel
from editbench.models.head import ReadLoss, select_head_positions
from memit_core import capture, intervene


@dataclass(frozen=True, slots=True)
class OffsetSite:
    """Where in the model offsets are added.

    Attributes:
        layer: The block that the site is in.
        module: Path of the module to whose output offsets are added.
        leaves_block: Whether that output is the block's own.
    """

    layer: int
    module: str
    leaves_block: bool

    @classmethod
    def block_output(cls, model: EditableModel, layer: int) -> "OffsetSite":
        """The residual stream behind block `layer`: MEMIT's site."""
        return cls(layer, model.architecture.block(layer), leaves_block=True)

    @classmethod
    def mlp_output(cls, model: EditableModel, layer: int) -> "OffsetSite":
        """The values of block `layer`: what its MLP's output projection says. ROME's site.

        In front of whatever norm or scale an architecture puts between the MLP and the residual
        stream, so that the offset is exactly what an update of the projection has to add.
        """
        return cls(layer, model.architecture.projection(layer, "mlp"), leaves_block=False)

    def outermost_equivalent(self, model: EditableModel, token_ids: Sequence[int]) -> "OffsetSite":
        """The block's output instead, if an offset there does the same; then it costs less.

        It does where the module's output goes into the residual stream as it is, and nowhere else.
        That is tried out, on one forward up to the block with an offset and one without.
        `token_ids` are what it is tried on.
        """
        if self.leaves_block:
            return self
        outer = self.block_output(model, self.layer)
        inputs = {**model.batch([token_ids]), "use_cache": False}
        offset = torch.zeros(1)

        def add_offset(output: Tensor) -> Tensor:
            return (output.float() + offset.to(output.device)).to(output.dtype)

        states = []
        for _ in range(2):
            with (
                torch.no_grad(),
                intervene(model.model, {self.module: add_offset}),
                capture(model.model, outputs_of=[outer.module], stop=True) as seen,
            ):
                model.model(**inputs)
            states.append(seen.outputs[outer.module].float().cpu())
            if states[0].dim() != 3:
                return self
            offset = states[0][0, -1].roll(1)  # as large as what it is added to
        # In half precision rounding alone is more than this, and the site stays where it is.
        error = (states[1] - states[0] - offset).abs().max()
        return outer if error <= 1e-4 * states[0].abs().max() else self


@dataclass(frozen=True, slots=True)
class OffsetRow:
    """One row of a batch.

    Attributes:
        token_ids: The row's tokens.
        offset_position: Where the offset is added.
        read_positions: Where logits are read: at that place or after it.
        n_shared: Leading tokens that other rows begin with, too, fewer than `offset_position`;
            a hint that saves work, such as a context prefix.
    """

    token_ids: tuple[int, ...]
    offset_position: int
    read_positions: tuple[int, ...]
    n_shared: int = 0


class OffsetForward(ABC):
    """Logits of a batch of rows as a differentiable function of one offset a row.

    Args:
        model: The model.
        site: Where the offsets are added.
        rows: The batch.
        read_layer: The block whose output the final norm and head are applied to; None is the
            last one, which gives the model's ordinary logits.

    Attributes:
        read_rows: For each read, the row it belongs to, `[n_reads]`.

    Raises:
        RequestError: A row is longer than the model takes.
    """

    def __init__(
        self,
        model: EditableModel,
        site: OffsetSite,
        rows: Sequence[OffsetRow],
        read_layer: int | None = None,
    ) -> None:
        model.check_lengths(row.token_ids for row in rows)
        self.model = model
        self.site = site
        self.rows = rows
        last = model.architecture.n_layers - 1
        self.read_layer = last if read_layer is None else max(read_layer, site.layer)
        self.read_rows = torch.tensor(
            [index for index, row in enumerate(rows) for _ in row.read_positions],
            device=model.device,
        )

    @abstractmethod
    def logits(self, offsets: Tensor) -> Tensor:
        """Run the rows with `offsets` added.

        Args:
            offsets: δ of each row, `[n_rows, d_model]`.

        Returns:
            Logits at the read positions, row after row, `[n_reads, vocabulary]`.
        """

    def losses(self, offsets: Tensor, n_losses: int, loss: ReadLoss) -> tuple[Tensor, Tensor]:
        """Run the rows with `offsets` added; of the first reads' logits only a loss is kept.

        So a forward may make these logits in slices; this one makes all of them.

        Args:
            offsets: δ of each row, `[n_rows, d_model]`.
            n_losses: How many reads, the first ones.
            loss: The loss of each; called for one slice of these reads after the other.

        Returns:
            The losses, `[n_losses]`, and logits at all other reads,
            `[n_reads - n_losses, vocabulary]`.
        """
        logits = self.logits(offsets)
        return loss(logits[:n_losses], slice(0, n_losses)), logits[n_losses:]

    @property
    def _reads_ordinary_logits(self) -> bool:
        return self.read_layer == self.model.architecture.n_layers - 1

    def _read_positions(self, shift: Sequence[int]) -> Tensor:
        """Read positions of all rows, each moved by its row's `shift`."""
        return torch.tensor(
            [
                p + move
                for row, move in zip(self.rows, shift, strict=True)
                for p in row.read_positions
            ],
            device=self.model.device,
        )


class FullForward(OffsetForward):
    """The whole model on whole rows at every call: slow, plain, and right for any architecture."""

    def __init__(
        self,
        model: EditableModel,
        site: OffsetSite,
        rows: Sequence[OffsetRow],
        read_layer: int | None = None,
    ) -> None:
        super().__init__(model, site, rows, read_layer)
        batch = model.batch([row.token_ids for row in rows])
        self._width = batch["input_ids"].shape[1]
        self._inputs = {**batch, "use_cache": False}
        self._row_index = torch.arange(len(rows), device=model.device)
        self._offset_index = torch.tensor(
            [row.offset_position for row in rows], device=model.device
        )
        self._read_index = self._read_positions([0] * len(rows))

    def logits(self, offsets: Tensor) -> Tensor:
        """See `OffsetForward.logits`."""

        def add_offsets(output: Tensor) -> Tensor:
            # OPT's MLP flattens; Gemma 3n has several residual streams, and an MLP moves them all.
            states = output.reshape(-1, len(self.rows), self._width, output.shape[-1])
            places = (
                torch.arange(len(states), device=output.device)[:, None],
                self._row_index.to(output.device),
                self._offset_index.to(output.device),
            )
            moved = states[places].float() + offsets.to(output.device)
            return states.index_put(places, moved.to(states.dtype)).reshape(output.shape)

        with (
            intervene(self.model.model, {self.site.module: add_offsets}),
            self._reading_out(),
            select_head_positions(self.model, self.read_rows, self._read_index),
        ):
            return self.model.model(**self._inputs).logits[0]

    @contextmanager
    def _reading_out(self) -> Iterator[None]:
        """Let the read block's output leave the last block in place of that one's own.

        So the model's own code makes logits of it, with all that an architecture does around its
        head, such as scaling logits.
        """
        if self._reads_ordinary_logits:
            yield
            return
        states: list[Tensor] = []

        def keep(output: Tensor) -> Tensor:
            states.append(output)
            return output

        def put_in_place(output: Tensor) -> Tensor:
            return states.pop().to(output.device)

        architecture = self.model.architecture
        last = architecture.block(architecture.n_layers - 1)
        read = architecture.block(self.read_layer)
        with intervene(self.model.model, {read: keep, last: put_in_place}):
            yield
