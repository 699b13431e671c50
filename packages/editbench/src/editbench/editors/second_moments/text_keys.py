"""Keys of ordinary text, run with little padding.

Texts of like length run together, and linear maps and MLPs, which is nearly all the work, leave out
what padding there is. Packing several texts into one row would spare attention the rest, and have
it look at whole rows instead of single texts, which takes more; and it needs every architecture to
keep the texts of a row apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from editbench.models.batches import Batch, Padded, batches_of_like_length
from editbench.models.chosen_positions import skipping_padding
from editbench.models.editable import EditableModel
from editbench.models.lean_modules import find_wasteful, made_lean
from editbench.models.out_of_memory import Halving
from memit_core import capture

# Padding that ends a batch; one of less than a sixteenth of the budget may have more.
_TOLERATED_PADDING: Final = 0.03
_SMALL: Final = 16


def batch_texts(texts: Sequence[Sequence[int]], token_budget: int) -> Iterator[Batch[int, Padded]]:
    """Group texts of like length, more of like length than as many as there is room for.

    Args:
        texts: Their tokens.
        token_budget: Padded tokens that a batch may hold; a longer text is a batch of its own.

    Yields:
        Batches of indices into `texts`, shortest texts first.
    """

    def is_loose(extent: Padded) -> bool:
        is_padded = extent.n_tokens < (1 - _TOLERATED_PADDING) * extent.n_padded
        return is_padded and extent.n_padded > token_budget // _SMALL

    return batches_of_like_length(texts, token_budget, is_loose)


def read_keys(
    model: EditableModel,
    projections: Mapping[int, str],
    texts: Sequence[Sequence[int]],
    token_budget: int | None = None,
    *,
    n_known: int = 0,
) -> Iterator[tuple[dict[int, Tensor], Tensor]]:
    """Run texts batch by batch, the shortest first.

    Args:
        model: The model.
        projections: By layer, the module whose inputs are the keys.
        texts: Their tokens.
        token_budget: Padded tokens that a batch may hold; None is the model's own.
        n_known: How many texts, the shortest ones, are to be left out.

    Yields:
        For each layer the keys of a batch's tokens, `[n_tokens, d_key]`, and which text each token
        is of, `[n_tokens]`, on the CPU.

    Raises:
        DeviceMemoryError: There is not enough memory for a single text.
    """
    wasteful = find_wasteful(model)
    layers = range(max(projections, default=-1) + 1)

    def read(batch: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
        inputs = model.batch([texts[index] for index in batch])
        mask = inputs["attention_mask"]
        with (
            torch.no_grad(),
            made_lean(wasteful),
            skipping_padding(model, mask, layers),
            capture(model.model, inputs_of=list(projections.values()), stop=True) as seen,
        ):
            model.model(**inputs, use_cache=False)
        real = mask.bool().flatten()
        owners = torch.tensor(batch).repeat_interleave(mask.sum(dim=1).cpu())
        keys = {}
        for layer, projection in projections.items():
            found = seen.inputs[projection]
            found = found.reshape(-1, found.shape[-1])  # OPT's MLP flattens
            # An MLP that skips padding has its own tokens alone, in the same order.
            skipped = len(found) == len(owners)
            keys[layer] = found if skipped else found[real.to(found.device)]
        return keys, owners

    halving = Halving(f"keys of ordinary text on '{model.name}'")
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))[n_known:]
    for batch in batch_texts(
        [texts[index] for index in order], token_budget or model.memory.tokens
    ):
        yield from halving.run([order[place] for place in batch.rows], read)
