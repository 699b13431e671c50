"""MEMIT from end to end on every family of architectures, with random weights."""

import torch

from editbench.datasets.corpus import Corpus
from editbench.editors.base import Resources
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.keys.reading import read_hidden
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.subject_tokens import key_row
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.target_hidden import optimize_target_hidden
from editbench.edits.weight_edit import WeightEdit
from editbench.models.editable import EditableModel
from editbench.progress import report_nothing
from editbench.requests import EditRequest

CONFIG = MemitConfig(
    critical_layers=(0, 2),
    preservation_weight=0.01,
    n_steps=8,
    learning_rate=0.3,
    learning_rate_unit="relative",
    second_moment_tokens=4_000,
)
POST_NORM = ("gemma2", "gemma3", "olmo2", "opt_post_norm")
REQUESTS = [
    EditRequest("0", "Zoë Brandt", "{} plays the sport of", "tennis"),
    EditRequest("1", "Danielle Darrieux", "The mother tongue of {} is", "French"),
    EditRequest("2", "北京", "{} is the capital of", "Spain"),
]


def write_corpus() -> list[str]:
    """Enough random text, over all tokens, that no direction of a key stays empty."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(32, 0x250, (200, 40), generator=generator)
    return ["".join(chr(code) for code in row) for row in codes.tolist()]


def test_an_edit_moves_the_hidden_states_to_their_targets(family_model: EditableModel) -> None:
    model, prefixes = family_model, ContextPrefixes((("",),))
    resources = Resources(
        seed=0, corpus=Corpus("random", "1", write_corpus), context_prefixes=prefixes
    )
    targets = optimize_target_hidden(
        model,
        REQUESTS,
        layer=2,
        settings=CONFIG,
        prefixes=prefixes.flat,
        cache=TargetCache(None),
        report_progress=report_nothing,
    )
    # The head of one OPT sits behind a projection of its own, so that replay gives way.
    assert (targets.replay_failure is None) == (model.name != "opt_post_norm")
    missing = (targets.states - targets.initial).norm()
    assert missing > 0.1 * targets.initial.norm()

    fingerprint = model.compute_fingerprint()
    edit = Memit(CONFIG).edit(model, REQUESTS, resources)
    assert isinstance(edit, WeightEdit)
    assert model.compute_fingerprint() == fingerprint
    rows = [key_row(model.tokens, request, "") for request in REQUESTS]
    with edit.applied(model):
        still_missing = (read_hidden(model, rows, 2) - targets.states).norm()
    # A norm behind the MLP swallows much of what an update adds.
    assert still_missing < (0.9 if model.name in POST_NORM else 0.3) * missing
