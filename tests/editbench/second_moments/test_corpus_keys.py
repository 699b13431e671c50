"""Keys of texts that run together are those of the texts by themselves."""

import pytest
import torch

from editbench.models.architecture import ProjectionKind
from editbench.models.chosen_positions import find_padded
from editbench.models.editable import EditableModel
from editbench.second_moments.corpus_keys import read_keys

LAYERS = (0, 2)
LENGTHS = (20, 3, 11, 3)


@pytest.mark.parametrize("module", ["mlp", "attention"])
def test_padding_is_skipped_and_changes_nothing(
    family_model: EditableModel, module: ProjectionKind
) -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 300, (n,), generator=generator).tolist() for n in LENGTHS]
    projections = {layer: family_model.architecture.projection(layer, module) for layer in LAYERS}
    ((together, owners),) = read_keys(family_model, projections, texts)
    mask = family_model.batch(texts)["attention_mask"]
    assert find_padded(family_model, mask, LAYERS)[1] is not None
    assert sorted(owners.tolist()) == [index for index, n in enumerate(LENGTHS) for _ in range(n)]
    for index, text in enumerate(texts):
        ((alone, _),) = read_keys(family_model, projections, [text])
        for layer in LAYERS:
            found = together[layer][owners.to(together[layer].device) == index]
            torch.testing.assert_close(found, alone[layer], rtol=1e-4, atol=1e-5)
