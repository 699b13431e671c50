"""What a hypernetwork is trained for: edits that generalize and leave the rest alone.

L = c_edit · L_edit + c_loc · L_loc (Mitchell et al., 2021, section 3.3). L_edit is the negative
log-likelihood of the target behind prompts that mean the same as the request; L_loc is the
divergence KL(unedited ‖ edited) behind unrelated prompts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from editbench.editors.mend.examples import Example, ExampleRow
from editbench.editors.mend.hypernetwork import Hypernetwork
from editbench.editors.training.gradients import GradientTerms, gather_gradients
from editbench.editors.training.matrices import Matrix
from editbench.models.editable import EditableModel
from editbench.models.head import select_head_positions
from editbench.models.out_of_memory import Halving
from editbench.models.token_states import by_row

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Losses:
    """The two parts of the objective, each a mean over edits, and how often the target comes first.

    Attributes:
        edit: L_edit, in nats a token.
        locality: L_loc, in nats a token.
        recall: Share of target tokens that the edited model gives, of L_edit's prompts.
    """

    edit: Tensor
    locality: Tensor
    recall: Tensor


def measure_losses(
    model: EditableModel,
    network: Hypernetwork,
    examples: Sequence[Example],
    group_size: int,
    *,
    observe: bool,
) -> Losses:
    """Edit, and ask the edited models; see `measure_parts`. The losses are of all examples."""
    halving = Halving(f"losses of edits on '{model.name}'")
    parts = measure_parts(
        model, network, examples, group_size, lambda part: part, halving, observe=observe
    )
    return sum_losses(list(parts))


def sum_losses(parts: Sequence[Losses]) -> Losses:
    """The losses of all examples from what its parts contribute."""
    columns = zip(*((part.edit, part.locality, part.recall) for part in parts), strict=True)
    return Losses(*(torch.stack(column).sum() for column in columns))


def measure_parts(
    model: EditableModel,
    network: Hypernetwork,
    examples: Sequence[Example],
    group_size: int,
    finish: Callable[[Losses], Result],
    halving: Halving,
    *,
    observe: bool,
) -> Iterator[Result]:
    """Edit, and ask the edited models.

    Each group of `group_size` consecutive examples is edited together, apart from the other groups.
    All run at once if memory suffices, else some groups after others: an update is of low rank, so
    each row of a batch can have its own. The losses are differentiable by the network's parameters.
    With `observe` the gradients count in the statistics that normalize.

    Yields:
        What `finish` makes of what some groups contribute to the losses, while memory lasts. The
        contributions of all parts add up to the losses.

    Raises:
        DeviceMemoryError: There is not enough memory for a single group.
    """
    requests = [example.request for example in examples]
    terms = gather_gradients(model, network.matrices, requests, halving)
    if observe:
        for matrix in network.matrices:
            network.observe(matrix, terms[matrix.name])
    n_equivalents = sum(len(example.equivalents) for example in examples)
    n_neighbors = sum(len(example.neighbors) for example in examples)

    def measure(groups: Sequence[int]) -> Result:
        edits = range(groups[0] * group_size, min((groups[-1] + 1) * group_size, len(examples)))
        some = examples[edits.start : edits.stop]
        own = terms
        if len(edits) < len(examples):
            own = {name: each.of(edits) for name, each in terms.items()}
        means = _measure_part(model, network, some, own, group_size)
        share = sum(len(example.equivalents) for example in some) / n_equivalents
        local_share = sum(len(example.neighbors) for example in some) / n_neighbors
        return finish(
            Losses(means.edit * share, means.locality * local_share, means.recall * share)
        )

    yield from halving.run(range(-(-len(examples) // group_size)), measure)


def _measure_part(
    model: EditableModel,
    network: Hypernetwork,
    examples: Sequence[Example],
    terms: Mapping[str, GradientTerms],
    group_size: int,
) -> Losses:
    """The losses of some groups, as means over their rows; all run at once."""
    rows: list[ExampleRow] = []
    owners: list[int] = []
    is_neighbor: list[bool] = []
    for index, example in enumerate(examples):
        for some, are_neighbors in ((example.equivalents, False), (example.neighbors, True)):
            rows += some
            owners += [index] * len(some)
            is_neighbor += [are_neighbors] * len(some)
    n_groups = -(-len(examples) // group_size)
    n_rows = [sum(owner // group_size == group for owner in owners) for group in range(n_groups)]
    updates: dict[Matrix, tuple[Tensor, ...]] = {}
    for matrix in network.matrices:
        left, right = network(matrix, terms[matrix.name])
        of_group = terms[matrix.name].edits // group_size
        updates[matrix] = tuple(_by_group(each, of_group, n_groups) for each in (left, right))
    kept = [row for row, are_neighbors in zip(rows, is_neighbor, strict=True) if are_neighbors]
    with torch.no_grad():
        before = _RowLogits(model, kept).read().log_softmax(dim=-1)
    asked = _RowLogits(model, rows)
    with torch.enable_grad(), _rows_edited(model, updates, n_rows):
        after = asked.read().log_softmax(dim=-1)
    keeps = torch.tensor(is_neighbor, device=model.device)[asked.rows]
    wants = ~keeps
    weights = asked.weights[wants] / asked.weights[wants].sum()
    likelihoods = functional.nll_loss(after[wants], asked.target_ids[wants], reduction="none")
    found = (after[wants].argmax(dim=-1) == asked.target_ids[wants]).float()
    divergences = (before.exp() * (before - after[keeps])).sum(dim=-1)
    return Losses(
        edit=(likelihoods * weights).sum(),
        locality=(divergences * asked.weights[keeps]).sum() / asked.weights[keeps].sum(),
        recall=(found * weights).sum(),
    )


class _RowLogits:
    """Some rows as a batch, and the logits that predict their targets.

    Attributes:
        rows: Of each target token its row, ``[n]``.
        target_ids: The target tokens, ``[n]``.
        weights: What each counts: the tokens of a row count 1 together.
    """

    def __init__(self, model: EditableModel, rows: Sequence[ExampleRow]) -> None:
        self._model = model
        self._inputs = {**model.batch([row.token_ids for row in rows]), "use_cache": False}
        places = [
            (index, row.start + offset, target, 1 / len(row.target_ids))
            for index, row in enumerate(rows)
            for offset, target in enumerate(row.target_ids)
        ]
        indices, positions, targets, weights = zip(*places, strict=True)
        device = model.device
        self.rows = torch.tensor(indices, device=device)
        self._positions = torch.tensor(positions, device=device)
        self.target_ids = torch.tensor(targets, device=device)
        self.weights = torch.tensor(weights, device=device)

    def read(self) -> Tensor:
        """Run the model; return logits ``[n, vocabulary]`` in float32."""
        with select_head_positions(self._model, self.rows, self._positions):
            return self._model.model(**self._inputs).logits[0].float()


def _by_group(part: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Split ``[n, d]``, sorted by group, into ``[n_groups, n_longest, d]``, padded with zeros."""
    sizes = groups.bincount(minlength=n_groups)
    places = torch.arange(len(groups), device=groups.device)
    places = places - (sizes.cumsum(dim=0) - sizes)[groups]
    padded = part.new_zeros(n_groups, int(sizes.max()), part.shape[-1])
    return padded.index_put((groups, places), part)


@contextmanager
def _rows_edited(
    model: EditableModel, updates: Mapping[Matrix, tuple[Tensor, ...]], n_rows: Sequence[int]
) -> Iterator[None]:
    """Within the block, each row of a batch sees the weights with its own group's updates.

    These are, for all groups, ``[n_groups, n, d_out]`` and ``[n_groups, n, d_in]``; `n_rows` says
    how many consecutive rows of the batch belong to each group.
    """
    with ExitStack() as hooks:
        for matrix, (left, right) in updates.items():
            module = model.model.get_submodule(matrix.module)
            hooks.enter_context(module.register_forward_hook(_make_row_edit(left, right, n_rows)))
        yield


def _make_row_edit(left: Tensor, right: Tensor, n_rows: Sequence[int]) -> Callable[..., Tensor]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        inputs = by_row(arguments[0], sum(n_rows)).to(right)
        if len(set(n_rows)) == 1:
            grouped = rearrange(inputs, "(group row) token d -> group (row token) d", row=n_rows[0])
            change = _apply_updates(grouped, left, right)
        else:
            groups = zip(inputs.split(list(n_rows)), left, right, strict=True)
            change = torch.cat([_apply_updates(part, out, into) for part, out, into in groups])
        return output + change.to(output).reshape(output.shape)

    return hook


def _apply_updates(inputs: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Δu of every token u, with Δ = leftᵀ right, in the order that takes fewer multiplications."""
    n_tokens, n_terms = inputs.shape[-2], left.shape[-2]
    d_out, d_in = left.shape[-1], right.shape[-1]
    if n_tokens * n_terms * (d_in + d_out) < (n_tokens + n_terms) * d_in * d_out:
        return inputs @ right.mT @ left
    return inputs @ (right.mT @ left)
