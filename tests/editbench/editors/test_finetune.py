"""Fine-tuning: the reference's vectors and losses, what is trained, how it ends, its contract."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from editbench.editors import finetune
from editbench.editors.base import Resources
from editbench.editors.finetune import (
    PRESETS,
    STAGE,
    FineTune,
    FineTuneConfig,
    LocFineTune,
    LocFineTuneConfig,
)
from editbench.editors.training.target_likelihood import TargetBatch
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import ConfigError, EditError, ModelError, UnknownNameError
from editbench.models.builtin_specs import BUILTIN_SPECS
from editbench.models.editable import EditableModel
from editbench.plugins.atlas import ATLAS
from editbench.questions import Score
from editbench.requests import EditRequest
from editbench.testing import check_editor, tiny_model, toy_cases

CONFIG = FineTuneConfig(layer=1, n_epochs=3, batch_size=2, learning_rate=5e-3)
REQUESTS = [
    *(case.request for case in toy_cases(2)),
    EditRequest("long", "Carmen Novak", "{} works as a", "judge, farmer and singer"),
]


def edit_of(model: EditableModel, config: FineTuneConfig, requests=REQUESTS, **options: object):
    edit = FineTune(config).edit(model, requests, Resources(**{"seed": 0, **options}))
    assert isinstance(edit, WeightEdit)
    return edit


def change_of(edit: WeightEdit, model: EditableModel) -> dict[str, torch.Tensor]:
    """What the edit adds to each parameter, as the model stores it."""
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    with edit.applied(model):
        after = {name: p.clone() for name, p in model.model.named_parameters()}
    return {name: after[name] - before[name] for name in edit.updates}


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("ft_w", {"preset": "reference"}),
        ("ft_w_as_shipped", {"preset": "reference-as-run"}),
        ("ft_unconstr", {"parameters": "mlp-projection", "weight_decay": 0.0}),
        ("ft_l", {"parameters": "mlp-projection", "weight_decay": 0.0}),
    ],
)
def test_updates_and_losses_match_the_reference(golden, variant: str, options: dict) -> None:
    used = json.loads((golden.folder / "hparams.json").read_text())["ft"][variant]
    config = FineTuneConfig.preset(
        **{"name": "reference", **{{"preset": "name"}.get(k, k): v for k, v in options.items()}},
        layer=used["layers"][0],
        n_epochs=used["num_steps"],
        learning_rate=used["lr"],
        batch_size=used.get("batch_size", 64),
        norm_constraint=used["norm_constraint"] or None,
    )
    requests = golden.requests[:1] if variant == "ft_l" else golden.requests
    losses: list[float] = []

    def note(stage: str, done: int, total: int, note: str = "") -> None:
        losses.append(float(note.rpartition(" ")[2]))

    edit = edit_of(golden.model, config, requests, report_progress=note)
    stored = json.loads((golden.folder / "ft_losses.json").read_text())[variant]
    assert losses == pytest.approx([loss for _, loss in stored["losses"]], abs=1e-3)
    expected = {
        name.partition(":")[2]: change
        for name, change in load_file(golden.folder / "ft.safetensors").items()
        if name.startswith(f"{variant}:")
    }
    if variant != "ft_w_as_shipped":  # of which one matrix alone is kept
        assert set(edit.updates) == set(expected)
    found = change_of(edit, golden.model)
    for name, change in expected.items():
        error = (found[name].double() - change.double()).norm() / change.double().norm()
        assert error < 1e-3, name


def test_finetuning_keeps_the_editor_contract() -> None:
    assert [result for result in check_editor(FineTune) if not result.passed] == []


def test_a_plain_loop_of_autograd_and_adam_does_the_same() -> None:
    """Teacher forcing, decay, minibatches in order: worked out fact by fact."""
    config = CONFIG.updated({"weight_decay": 0.1}, "test")
    model, naive = tiny_model(), tiny_model()
    names = ["transformer.h.1.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj.bias"]
    parameters = [naive.model.get_parameter(name).requires_grad_() for name in names]
    optimizer = torch.optim.Adam(parameters, lr=5e-3, weight_decay=0.1)
    losses = []
    for _ in range(3):
        epoch = []
        for batch in (REQUESTS[:2], REQUESTS[2:]):
            facts = []
            for request in batch:
                prompt = naive.tokens.encode(request.text)
                target = naive.tokens.encode(" " + request.target)
                logits = naive.model(torch.tensor([prompt + target])).logits[0]
                log_probs = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)
                facts.append(-log_probs[range(len(target)), target].mean())
            loss = torch.stack(facts).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            epoch += [loss.item()] * len(batch)
        losses.append(sum(epoch) / len(epoch))
    edit = edit_of(model, config)
    assert edit.card.extra["losses"] == pytest.approx(losses, abs=1e-3)
    with edit.applied(model):
        for name, parameter in zip(names, parameters, strict=True):
            torch.testing.assert_close(
                model.model.get_parameter(name), parameter.detach(), rtol=1e-4, atol=1e-6
            )


def test_the_two_scorings_differ_beyond_the_first_token_only() -> None:
    model = tiny_model()

    def loss(request: EditRequest, scoring: str) -> float:
        with torch.no_grad():
            return TargetBatch(model, [request], scoring).loss().item()

    one_token = EditRequest("0", "Ana Lund", "{} works as a", "poet")
    n_tokens = len(model.tokens.encode(" " + one_token.target))
    assert (loss(one_token, "teacher-forced") == loss(one_token, "last-position")) == (
        n_tokens == 1
    )
    prompt = model.tokens.encode(REQUESTS[2].text)
    target = model.tokens.encode(" " + REQUESTS[2].target)
    assert len(target) > 2
    with torch.no_grad():
        behind = model.model(torch.tensor([prompt])).logits[0, -1].log_softmax(dim=-1)
    bag = float(-behind[target].mean())
    assert loss(REQUESTS[2], "last-position") == pytest.approx(bag, rel=1e-5)
    from editbench.models.answering import answer_questions

    question = Score(REQUESTS[2].text, REQUESTS[2].target)
    answer = answer_questions(model, [question], seed=0, token_budget=512)[question]
    scored = -sum(answer.log_probs) / len(answer.log_probs)
    assert loss(REQUESTS[2], "teacher-forced") == pytest.approx(scored, rel=1e-5)


def test_the_bound_holds_for_every_weight() -> None:
    config = CONFIG.updated({"norm_constraint": 1e-3, "parameters": "block"}, "test")
    model = tiny_model()
    changes = change_of(edit_of(model, config), model)
    largest = max(float(change.abs().max()) for change in changes.values())
    assert largest == pytest.approx(1e-3, rel=1e-3)


def test_training_stops_early_and_leaves_what_is_learned_alone() -> None:
    model = tiny_model()
    first = edit_of(model, CONFIG).card.extra["losses"]
    easily = CONFIG.updated({"n_epochs": 60, "stop_loss": (first[1] + first[2]) / 2}, "test")
    reports: list[tuple[int, int, str]] = []

    def note(stage: str, done: int, total: int, note: str = "") -> None:
        assert stage == STAGE
        reports.append((done, total, note))

    edit = edit_of(model, easily, report_progress=note)
    losses = edit.card.extra["losses"]
    assert len(losses) < 60
    assert losses[-1] < easily.stop_loss <= losses[-2]
    assert reports[0][:2] == (1, 120)
    assert reports[-1][:2] == (120, 120)
    assert reports[-1][2].startswith("stopped at loss 5.")
    satisfied = CONFIG.updated({"stop_loss": 100.0}, "test")
    assert not edit_of(model, satisfied).changes_something


def test_a_whole_block_with_its_norms_survives_the_file(tmp_path) -> None:
    model = tiny_model()
    edit = edit_of(model, CONFIG.updated({"parameters": "block"}, "test"))
    block = dict(model.model.get_submodule("transformer.h.1").named_parameters())
    assert set(edit.updates) == {f"transformer.h.1.{name}" for name in block}
    assert edit.updates["transformer.h.1.ln_1.weight"].shape == (24,)
    assert edit.updates["transformer.h.1.mlp.c_proj.weight"].shape == (24, 96)
    edit.save(tmp_path / "edit.safetensors")
    loaded = WeightEdit.load(tmp_path / "edit.safetensors")
    stored = load_file(tmp_path / "edit.safetensors")
    assert stored["transformer.h.1.ln_1.weight.dense"].shape == (24,)
    once = change_of(edit, model)
    twice = change_of(edit + loaded, model)
    for name, change in change_of(loaded, model).items():
        assert torch.equal(change, once[name])
        torch.testing.assert_close(twice[name], 2 * change, rtol=1e-4, atol=1e-6)
    assert not (edit + -loaded).changes_something


def test_in_half_precision_small_steps_add_up() -> None:
    """A step far below the spacing of bfloat16 numbers would be lost if taken in bfloat16."""
    model = tiny_model()
    model = EditableModel(model.model.bfloat16(), model.tokens, name="half")
    config = FineTuneConfig(layer=1, n_epochs=40, learning_rate=2e-5, weight_decay=0.0)
    edit = edit_of(model, config)
    name = "transformer.h.1.mlp.c_proj.weight"
    change = change_of(edit, model)[name]
    assert change.norm() > 0.5 * 40 * 2e-5 * math.sqrt(change.numel()) / 2
    assert edit.card.extra["losses"][-1] < edit.card.extra["losses"][0]


def test_an_interrupted_training_leaves_the_model_as_it_was() -> None:
    model = tiny_model()
    before = model.compute_fingerprint()

    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        assert model.compute_fingerprint() != before
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit_of(model, CONFIG, report_progress=interrupt)
    assert model.compute_fingerprint() == before
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_only_the_block_of_that_number_is_trained() -> None:
    """The reference matches names by substring: its layer 1 is 1 and 10 to 19."""
    model = tiny_model(n_layers=12)
    edit = edit_of(model, CONFIG.updated({"parameters": "block", "n_epochs": 1}, "test"))
    assert all(name.startswith("transformer.h.1.") for name in edit.updates)


def test_weight_decay_follows_the_power_law() -> None:
    law = FineTuneConfig(layer=0, weight_decay="power-law")
    assert law.decay_for(20) == pytest.approx(0.08618542759963622)
    assert law.decay_for(10_000) == pytest.approx(3.9e-4, rel=0.02)
    assert FineTuneConfig(layer=0).decay_for(10_000) == 5e-4
    edit = edit_of(tiny_model(), CONFIG.updated({"weight_decay": "power-law"}, "test"))
    assert edit.card.extra["weight_decay"] == pytest.approx(law.decay_for(3))


def test_presets_are_the_paper_s_and_the_reference_s() -> None:
    paper = FineTuneConfig.preset("paper", layer=21)
    assert paper == FineTuneConfig(layer=21)
    reference = FineTuneConfig.preset("reference", layer=21, n_epochs=3)
    assert (reference.parameters, reference.scoring) == ("block", "last-position")
    assert (reference.weight_decay, reference.n_epochs) == ("power-law", 3)
    assert FineTuneConfig.preset("reference-as-run", layer=21).weight_decay == 0
    assert set(PRESETS) == {"paper", "reference", "reference-as-run"}
    with pytest.raises(UnknownNameError, match="Did you mean 'reference'"):
        FineTuneConfig.preset("referense", layer=21)


def test_published_hyperparameters() -> None:
    published = {
        spec.name: FineTuneConfig.parse(spec.defaults["ft-w"], "test")
        for spec in (*BUILTIN_SPECS, ATLAS)
        if "ft-w" in spec.defaults
    }
    assert published["gpt-j-6b"] == FineTuneConfig(layer=21)
    assert published["gpt2-xl"].layer == 1
    assert "atlas" in published
    config, note = FineTune.default_config(tiny_model(n_layers=4))
    assert config.layer == 3
    assert "derived from 4 layers" in note


def test_errors_say_what_is_wrong() -> None:
    model = tiny_model()
    with pytest.raises(ModelError, match="no such layer: got 9; expected 0 to 3"):
        edit_of(model, CONFIG.updated({"layer": 9}, "test"))
    with pytest.raises(ConfigError, match="field 'scoring'"):
        FineTuneConfig.parse({"layer": 1, "scoring": "bag"}, "my.yaml")
    with pytest.raises(ConfigError, match="field 'weight_decay"):
        FineTuneConfig.parse({"layer": 1, "weight_decay": "law"}, "my.yaml")
    before = model.compute_fingerprint()
    with pytest.raises(EditError, match="ft-w: the loss is not finite in epoch"):
        edit_of(model, CONFIG.updated({"learning_rate": 1e30, "n_epochs": 9}, "test"))
    assert model.compute_fingerprint() == before


def test_no_request_is_an_edit_that_changes_nothing() -> None:
    assert not edit_of(tiny_model(), CONFIG, []).changes_something


def test_locft_trains_the_end_of_the_text_too() -> None:
    model, requests = tiny_model(), [case.request for case in toy_cases(3)]
    config = LocFineTuneConfig(layer=1, learning_rate=5e-3, n_epochs=30, batch_size=2)

    def losses(end_id: int | None) -> torch.Tensor:
        found = [TargetBatch(model, [each], "teacher-forced", end_id) for each in requests]
        with torch.no_grad():
            return torch.stack([batch.loss() for batch in found])

    targets, both = losses(None), losses(0)
    prompt, target = model.tokens.encode_question(requests[0].question)
    logits = model.model(input_ids=torch.tensor([[*prompt, *target]])).logits
    by_hand = functional.cross_entropy(logits[0, -2:], torch.tensor([*target, 0]))
    torch.testing.assert_close(both[0], by_hand)
    edit = LocFineTune(config).edit(model, requests, Resources(seed=0))
    again = LocFineTune(config).edit(model, requests, Resources(seed=0))
    assert edit.identity == again.identity
    with edit.applied(model):
        # The mean over target and end falls more than that over the target: both are trained.
        assert (losses(0) < both).all()
        assert (losses(None).mean() < targets.mean()).all()
        ends = 2 * losses(0) - losses(None)
    assert (ends < 2 * both - targets).all()
    assert LocFineTune.default_config(tiny_model(n_layers=8))[0].layer == 5


@pytest.mark.parametrize(("n_facts", "n_orders"), [(6, 3), (2, 1)])
def test_locft_draws_its_batches_anew_in_every_epoch(
    n_facts: int, n_orders: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rate of zero every epoch has the same loss; the batches it comes of differ."""
    model, requests = tiny_model(), [case.request for case in toy_cases(n_facts)]
    config = LocFineTuneConfig(layer=1, learning_rate=1e-9, n_epochs=3, batch_size=2, stop_loss=0)
    drawn: list[list[str]] = []

    def draw(model: EditableModel, some: Sequence[EditRequest], *more: Any) -> TargetBatch:
        drawn.append([each.case_id for each in some])
        return TargetBatch(model, some, *more)

    monkeypatch.setattr(finetune, "TargetBatch", draw)
    edit = LocFineTune(config).edit(model, requests, Resources(seed=0))
    size = -(-n_facts // 2)
    epochs = [drawn[start : start + size] for start in range(0, len(drawn), size)]
    assert len(epochs) == n_orders
    everything = sorted(each.case_id for each in requests)
    assert all(sorted(name for some in epoch for name in some) == everything for epoch in epochs)
    assert len({str(epoch) for epoch in epochs}) == n_orders
    losses = edit.card.extra["losses"]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-3)
