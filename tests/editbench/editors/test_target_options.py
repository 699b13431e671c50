"""Options of z that trade its numbers for time; off by default."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from editbench.atlas import default_world
from editbench.editors.base import Resources, Share
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.settings import TargetSettings
from editbench.editors.targets.target_hidden import TargetHidden, optimize_target_hidden
from editbench.editors.targets.tasks import group_requests
from editbench.models import memory_budget
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.models.loading import load_model
from editbench.plugins.atlas import ATLAS
from editbench.progress import report_nothing
from editbench.questions import Score
from editbench.requests import EditRequest
from editbench.testing import toy_corpus

REQUESTS = [case.request for case in default_world().cases(4)]
PREFIXES = ContextPrefixes((("",), ("It is known. ",)))
SETTINGS = TargetSettings(
    n_steps=20, learning_rate=0.1, learning_rate_unit="relative", stop_loss=0, clamp_factor=2
)
LAYER = 3
OTHER = replace(REQUESTS[0], case_id="other", prompt="{} is at home in", target=REQUESTS[1].target)


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return load_model("atlas", specs={"atlas": ATLAS}, device="cpu")


def optimize(
    model: EditableModel,
    requests: Sequence[EditRequest] = REQUESTS,
    settings: TargetSettings = SETTINGS,
    cache: TargetCache | None = None,
    **options: bool | int,
) -> TargetHidden:
    return optimize_target_hidden(
        model,
        requests,
        layer=LAYER,
        settings=settings,
        prefixes=PREFIXES.flat,
        cache=cache or TargetCache(None),
        report_progress=report_nothing,
        **options,
    )


@pytest.mark.parametrize("slice_size", [None, 3])
def test_argmax_stops_at_the_first_step_that_says_the_target(
    model, monkeypatch: pytest.MonkeyPatch, slice_size: int | None
) -> None:
    if slice_size is not None:
        monkeypatch.setattr(memory_budget, "_LOGITS_WITH_LOSS", slice_size * model.n_logits)
    by_loss = optimize(model)
    by_argmax = optimize(model, settings=SETTINGS.model_copy(update={"stop_at": "argmax"}))
    assert by_loss.n_steps.tolist() == [20] * 4
    assert all(1 < steps < 20 for steps in by_argmax.n_steps.tolist())
    for edit, steps in enumerate(by_argmax.n_steps.tolist()):
        one, settings = [REQUESTS[edit]], SETTINGS.model_copy(update={"n_steps": steps})
        cut_short = optimize(model, one, settings)
        # Alone it is computed in other batches, whose rounding the steps carry on.
        torch.testing.assert_close(
            by_argmax.states[edit], cut_short.states[0], rtol=1e-4, atol=1e-4
        )
        earlier = SETTINGS.model_copy(update={"n_steps": steps - 1})
        assert says_target(model, one[0], cut_short.states[0] - cut_short.initial[0])
        before = optimize(model, one, earlier)
        assert not says_target(model, one[0], before.states[0] - before.initial[0])


def says_target(model: EditableModel, request: EditRequest, offset: torch.Tensor) -> bool:
    """Whether the target is the likeliest after every prefix, with an offset at the subject."""
    said = []
    for prefix in PREFIXES.flat:
        text = prefix + request.text
        last = model.tokens.locate(
            text,
            len(prefix) + request.subject_start,
            len(prefix) + request.subject_start + len(request.subject),
        )

        def add(module: object, args: object, output: object, last: int = last) -> object:
            states = output[0] if isinstance(output, tuple) else output
            states[:, last] += offset
            return output

        block = model.model.get_submodule(model.architecture.block(LAYER))
        handle = block.register_forward_hook(add)
        question = Score(text, request.target)
        try:
            answers = answer_questions(model, [question], seed=0, token_budget=10_000)
        finally:
            handle.remove()
        said.append(all(answers[question].argmax))
    return all(said)


def test_facts_about_a_subject_share_their_offset(model) -> None:
    requests = [*REQUESTS[:2], OTHER]
    shared = optimize(model, requests, share_subjects=True)
    offsets = shared.states - shared.initial
    torch.testing.assert_close(offsets[0], offsets[2])
    assert not torch.allclose(offsets[0], offsets[1])
    apart = optimize(model, requests)
    assert not torch.allclose(offsets[0], (apart.states - apart.initial)[0])
    torch.testing.assert_close(shared.states[1], apart.states[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shared.initial, apart.initial)


def test_sharing_changes_nothing_where_every_subject_occurs_once(model) -> None:
    assert torch.equal(optimize(model, share_subjects=True).states, optimize(model).states)


def test_a_shared_offset_is_kept_for_these_facts_alone(model, tmp_path) -> None:
    cache = TargetCache(tmp_path)
    shared = optimize(model, [REQUESTS[0], OTHER], cache=cache, share_subjects=True)
    again = optimize(model, [REQUESTS[0], OTHER], cache=cache, share_subjects=True)
    alone = optimize(model, REQUESTS[:1], cache=cache, share_subjects=True)
    assert torch.equal(shared.states, again.states)
    assert not torch.allclose(shared.states[0], alone.states[0])


def make_keys(model: EditableModel, requests: Sequence[EditRequest], **options: bool) -> list[str]:
    groups = group_requests(requests, share_subjects=options.get("share_subjects", False))
    warm_start = options.get("warm_start", False)
    return TargetCache(None).keys(
        model, requests, groups, LAYER, SETTINGS, PREFIXES.flat, warm_start=warm_start
    )


@pytest.mark.parametrize("option", ["warm_start", "share_subjects"])
def test_finding_keys_takes_time_in_proportion_to_the_requests(
    model, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """Also where each state depends on all requests: they are written out once, not n times."""
    n_written = 0
    dumps = json.dumps

    def count(*args: object, **kwargs: object) -> str:
        nonlocal n_written
        written = dumps(*args, **kwargs)
        n_written += len(written)
        return written

    monkeypatch.setattr(json, "dumps", count)
    lengths = []
    for n in (200, 400):
        n_written = 0
        requests = [replace(OTHER, case_id=str(i), prompt=f"{{}} is {i:03} at") for i in range(n)]
        keys = make_keys(model, requests, **{option: True})
        assert len(set(keys)) == n
        lengths.append(n_written)
    assert 1.9 < lengths[1] / lengths[0] < 2.1


def test_keys_depend_on_what_states_depend_on(model) -> None:
    requests = [REQUESTS[0], OTHER, REQUESTS[1]]
    changed = [*requests[:2], replace(REQUESTS[1], target="nothing")]
    plain, shared, warm = (
        make_keys(model, requests, **options)
        for options in ({}, {"share_subjects": True}, {"warm_start": True})
    )
    assert make_keys(model, changed)[:2] == plain[:2]
    assert make_keys(model, changed, share_subjects=True)[:2] == shared[:2]
    assert plain[2] == shared[2]
    for before, after in zip(warm, make_keys(model, changed, warm_start=True), strict=True):
        assert before != after
    for one, other in zip(plain[:2], shared[:2], strict=True):
        assert one != other
    other = [replace(REQUESTS[0], target="nothing"), *requests[1:]]
    assert make_keys(model, other)[1] == plain[1]
    assert make_keys(model, other, share_subjects=True)[1] != shared[1]


def test_warm_start_begins_where_others_with_the_target_ended(model) -> None:
    requests = [replace(request, target=REQUESTS[0].target) for request in REQUESTS]
    cold = optimize(model, requests, token_budget=1)
    settings = SETTINGS.model_copy(update={"n_steps": 1})  # only measures
    started = optimize(model, requests, settings, warm_start=True, token_budget=1)
    torch.testing.assert_close(started.states[0], started.initial[0])
    warm = optimize(model, requests, warm_start=True, token_budget=1)
    assert warm.losses[1:].mean() < cold.losses[1:].mean()
    bound = SETTINGS.clamp_factor * warm.initial.norm(dim=1)
    assert ((warm.states - warm.initial).norm(dim=1) <= bound * (1 + 1e-5)).all()


def test_what_depends_on_other_facts_is_not_divided_over_workers(model, tmp_path) -> None:
    config = MemitConfig(
        critical_layers=(1, 2), preservation_weight=50, n_steps=2, second_moment_tokens=500
    )
    resources = Resources(seed=0, cache=tmp_path, corpus=toy_corpus(), context_prefixes=PREFIXES)
    shared = config.model_copy(update={"share_subjects": True})
    Memit(shared).prepare(model, REQUESTS, resources, Share(1, 2))
    assert not list(tmp_path.rglob("target_hidden.sqlite"))
    Memit(config).prepare(model, REQUESTS, resources, Share(1, 2))
    assert list(tmp_path.rglob("target_hidden.sqlite"))
