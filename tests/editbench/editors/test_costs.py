"""What editors plan is what they do: tokens exactly, operations and bytes nearly."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from editbench.costs.answers import estimate_answers
from editbench.costs.stage import ExpectedCache, StageCost
from editbench.editors.base import Editor, Resources
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.finetune import FineTune, LocFineTune, LocFineTuneConfig
from editbench.editors.keys.layer_sweep import LayerSweep
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.prompting import InContext, PromptingConfig
from editbench.editors.rome import Rome
from editbench.editors.targets.batches import chunk_tasks, estimate_targets
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.settings import TargetSettings
from editbench.editors.targets.target_hidden import optimize_target_hidden
from editbench.editors.targets.tasks import make_tasks
from editbench.editors.unedited import Unedited
from editbench.edits.prompt_edit import WordingName
from editbench.models import memory_budget
from editbench.models.answering import answer_questions
from editbench.models.batches import Padded
from editbench.models.editable import EditableModel
from editbench.models.memory_budget import MemoryBudget
from editbench.progress import report_nothing
from editbench.questions import Diverge, Generate, PlainQuestion, Question, Read, Score, Write
from editbench.requests import EditRequest
from editbench.testing import tiny_model, tiny_tokenizer, toy_cases, toy_corpus

REQUESTS = [case.request for case in toy_cases(6)]
PREFIXES = ContextPrefixes((("",), ("Ana Lund met Boris Sato. ", "It is known. ")))
SETTINGS = TargetSettings(n_steps=20, stop_loss=0)  # nobody stops early
LAYER = 2
N_COMPARED = 4  # prefixes, replay and whole rows of a few, which are compared
PROBE = (1, 4)  # the short row on which `SparedModules` finds out what need not be computed


@pytest.fixture(scope="module", params=["gpt2", "gptj", "llama"])
def network(
    request: pytest.FixtureRequest,
    families: dict[str, tuple[hf.PreTrainedConfig, ...]],
    make_network: Callable[..., hf.PreTrainedModel],
) -> EditableModel:
    """Attention as plain products of matrices: the counter knows no other on a CPU."""
    values = {**families[request.param][0].to_dict(), "vocab_size": len(tiny_tokenizer())}
    values["n_layer" if "n_layer" in values else "num_hidden_layers"] = 6
    config = type(families[request.param][0]).from_dict(values)
    config._attn_implementation = "eager"
    return EditableModel(make_network(config), tiny_tokenizer(), name=request.param)


@contextmanager
def counting_tokens(model: EditableModel, layer: int) -> Iterator[list[int]]:
    """Tokens, padding included, that go through a block."""
    counts: list[int] = []

    def count(module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, object]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        assert isinstance(states, torch.Tensor)
        if states.shape[:2] != PROBE:
            counts.append(states.shape[0] * states.shape[1])

    block = model.model.get_submodule(model.architecture.block(layer))
    handle = block.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


def optimize(
    model: EditableModel, token_budget: int | None, prefixes: Sequence[str] = PREFIXES.flat
) -> None:
    optimize_target_hidden(
        model,
        REQUESTS,
        layer=LAYER,
        settings=SETTINGS,
        prefixes=prefixes,
        cache=TargetCache(None),
        report_progress=report_nothing,
        token_budget=token_budget,
    )


@pytest.mark.parametrize("with_bare", [True, False])
@pytest.mark.parametrize("token_budget", [1, 64, None])
def test_targets(network: EditableModel, token_budget: int | None, *, with_bare: bool) -> None:
    prefixes = PREFIXES.flat if with_bare else PREFIXES.flat[1:]
    tasks = make_tasks(network.tokens, REQUESTS, prefixes)
    planned = estimate_targets(network, tasks, LAYER, SETTINGS, token_budget)
    with counting_tokens(network, LAYER + 2) as counts, FlopCounterMode(display=False) as counter:
        optimize(network, token_budget, prefixes)
    n_tokens = sum(counts[N_COMPARED:])
    if not with_bare:  # bare prompts are run by themselves, up to the layer alone
        chunks = list(chunk_tasks(network, tasks, LAYER, token_budget))
        bare = [Padded.of(task.bare.token_ids for task in chunk.rows) for chunk in chunks]
        n_tokens += sum(each.n_padded for each in bare)
    assert planned.n_tokens == n_tokens
    assert 0.97 < planned.n_flops / counter.get_total_flops() < 1.1


def test_bytes_that_targets_keep(network: EditableModel) -> None:
    tasks = make_tasks(network.tokens, REQUESTS, PREFIXES.flat)
    once = TargetSettings(n_steps=1, stop_loss=0)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    weights = {each.untyped_storage().data_ptr() for each in network.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        optimize_target_hidden(
            network,
            REQUESTS,
            layer=LAYER,
            settings=once,
            prefixes=PREFIXES.flat,
            cache=TargetCache(None),
            report_progress=report_nothing,
        )
    measured = sum(each.nbytes() for place, each in kept.items() if place not in weights)
    # Besides what is kept there are prefixes, logits, and the gradients on their way.
    assert measured < estimate_targets(network, tasks, LAYER, once).n_peak_bytes < 3 * measured


def count_reads(model: EditableModel) -> int:
    tasks = make_tasks(model.tokens, REQUESTS, PREFIXES.flat)
    return sum(len(row.target_ids) for task in tasks for row in task.prompts)


def test_logits_of_targets_are_counted_up_to_a_slice(
    network: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = make_tasks(network.tokens, REQUESTS, PREFIXES.flat)
    n_reads, n_bytes = count_reads(network), network.size.logit_bytes(with_loss=True)
    assert n_reads > 10
    whole = estimate_targets(network, tasks, LAYER, SETTINGS).n_peak_bytes
    for slice_size in (1, 7, n_reads, n_reads + 1):
        monkeypatch.setattr(memory_budget, "_LOGITS_WITH_LOSS", slice_size * network.n_logits)
        sliced = estimate_targets(network, tasks, LAYER, SETTINGS).n_peak_bytes
        assert whole - sliced == pytest.approx(max(0, n_reads - slice_size) * n_bytes)


def test_slices_leave_room_for_larger_chunks(
    network: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a vocabulary so large that logits are nearly all that counts."""
    network.size  # noqa: B018 (worked out once)
    wide = replace(network.size, n_logits=100_000)
    monkeypatch.setitem(network.__dict__, "size", wide)
    tasks = make_tasks(network.tokens, REQUESTS, PREFIXES.flat)
    # Room for the KL rows of all edits and the losses of a few.
    memory = (len(REQUESTS) + 5) * wide.logit_bytes(with_loss=True)
    monkeypatch.setattr(MemoryBudget, "batch_bytes", lambda self, beside: memory)
    assert len(list(chunk_tasks(network, tasks, LAYER))) == 3
    monkeypatch.setattr(memory_budget, "_LOGITS_WITH_LOSS", 4 * wide.n_logits)
    assert len(list(chunk_tasks(network, tasks, LAYER))) == 1


class OperationCount(TorchDispatchMode):
    """As `FlopCounterMode`, which does not go with gradients that are taken inside of a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.n_flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            count = flop_registry[func.overloadpacket]
            self.n_flops += count(*args, **(kwargs or {}), out_val=result)
        return result


def test_operations_of_slices(network: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is taken in slices brings its gradient along, in the last step, too."""
    tasks = make_tasks(network.tokens, REQUESTS, PREFIXES.flat)
    done, planned = [], []
    for slice_size in (1_000, 3):
        monkeypatch.setattr(memory_budget, "_LOGITS_WITH_LOSS", slice_size * network.n_logits)
        planned.append(estimate_targets(network, tasks, LAYER, SETTINGS).n_flops)
        with OperationCount() as count:
            optimize(network, None)
        done.append(count.n_flops)
    expected = network.size.head_flops(count_reads(network))
    assert planned[1] - planned[0] == pytest.approx(expected)
    assert done[1] - done[0] == expected


@pytest.mark.parametrize("layers", [(1, 3), (0, 1, 2, 3), (3,)])
def test_keys(
    network: EditableModel, layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A few rows would be run to see whether prefixes can be shared, and blocks kept open.
    for check in ("_agrees", "_can_open"):
        monkeypatch.setattr(LayerSweep, check, lambda self, rows: True)
    config = MemitConfig(critical_layers=layers, preservation_weight=1.0)
    planned = plan_memit(network, config)["keys"]
    initial = torch.zeros(len(REQUESTS), network.architecture.d_model)
    with counting_tokens(network, 0) as counts, FlopCounterMode(display=False) as counter:
        sweep = LayerSweep(
            network,
            REQUESTS,
            PREFIXES,
            "grouped",
            first=layers[0],
            last=layers[-1],
            initial=initial,
        )
        for layer in layers:
            sweep.measure(layer)
    if layers[0] > 0:
        assert planned.n_tokens == sum(counts)
    assert planned.n_flops == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_answers(network: EditableModel) -> None:
    questions: list[Question] = [
        *(Score(request.text, request.target) for request in REQUESTS),
        *(Score(request.text, "by the sea") for request in REQUESTS),
        *(Read(request.text) for request in REQUESTS),
        *(Generate(request.subject, 20) for request in REQUESTS),
    ]
    planned = estimate_answers(network, questions, token_budget=64)
    with counting_tokens(network, 0) as counts, FlopCounterMode(display=False) as counter:
        answer_questions(network, questions, seed=0, token_budget=64)
    assert sum(stage.n_tokens for stage in planned) == sum(counts)
    assert sum(stage.n_flops for stage in planned) == pytest.approx(
        counter.get_total_flops(), rel=0.05
    )


def test_answers_that_a_model_writes(network: EditableModel, monkeypatch) -> None:
    monkeypatch.setattr(network.model.generation_config, "eos_token_id", None)  # no text ends soon
    questions: list[Question] = [
        *(Score(request.text, request.target) for request in REQUESTS),
        *(Score(request.text, "by the sea") for request in REQUESTS),
        *(Write(request.text, 5) for request in REQUESTS),
    ]
    planned = estimate_answers(network, questions, token_budget=64)
    with counting_tokens(network, 0) as counts, FlopCounterMode(display=False) as counter:
        answer_questions(network, questions, seed=0, token_budget=64)
    assert sum(stage.n_tokens for stage in planned) == sum(counts)
    assert sum(stage.n_flops for stage in planned) == pytest.approx(
        counter.get_total_flops(), rel=0.05
    )


def test_divergence_is_planned_as_two_readings(network: EditableModel) -> None:
    texts = [request.text for request in REQUESTS]
    read = estimate_answers(network, map(Read, texts), token_budget=64)
    compared = [Diverge(text, everywhere=True) for text in texts]
    (planned,) = estimate_answers(network, compared, token_budget=64)
    assert planned.n_tokens == 2 * sum(stage.n_tokens for stage in read)


@pytest.mark.parametrize("batch_size", [4, 6])
def test_fine_tuning(
    network: EditableModel, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that are drawn anew run whole; those that stay do so once, and verified once more."""
    config = LocFineTuneConfig(layer=2, batch_size=batch_size, n_epochs=3, stop_loss=0)
    editor, resources = LocFineTune(config), Resources(seed=0)
    (planned,) = editor.estimate(network, REQUESTS, resources, ExpectedCache())
    with counting_tokens(network, 0) as counts, counting_tokens(network, 3) as behind:
        editor.edit(network, REQUESTS, resources)
    if batch_size < len(REQUESTS):
        assert planned.n_tokens == sum(counts) == sum(behind)
        assert "2 batches of at most 4 edits, 3 epochs" in planned.chunks
    else:
        assert planned.n_tokens * 3 // 4 <= sum(behind)
        assert sum(counts) < planned.n_tokens


@pytest.mark.parametrize("wording", ["sentence", "new-fact"])
def test_what_stands_before_questions_is_planned(
    network: EditableModel, wording: WordingName
) -> None:
    questions: list[PlainQuestion] = [
        *(Score(request.text, request.target) for request in REQUESTS),
        *(Generate(request.subject, 20) for request in REQUESTS),
        *(Diverge(request.subject) for request in REQUESTS),
        *(Read(request.text) for request in REQUESTS),
    ]
    editor = InContext(PromptingConfig(wording=wording))
    budget = 4096
    planned = estimate_answers(
        network, questions, token_budget=budget, preface=editor.preface(REQUESTS[:2])
    )
    edit = editor.edit(network, REQUESTS[:2], Resources(seed=0))
    with edit.applied(network), counting_tokens(network, 0) as counts:
        answer_questions(network, questions, seed=0, token_budget=budget)
    assert sum(stage.n_tokens for stage in planned) == sum(counts)
    bare = estimate_answers(network, questions, token_budget=budget)
    assert sum(stage.n_tokens for stage in bare) < 0.8 * sum(counts)


def plan_memit(model: EditableModel, config: MemitConfig, **given: object) -> dict[str, StageCost]:
    resources = Resources(**{"seed": 0, "context_prefixes": PREFIXES, **given})
    return {
        stage.name: stage
        for stage in Memit(config).estimate(model, REQUESTS, resources, ExpectedCache())
    }


CONFIG = MemitConfig(
    critical_layers=(0, 2), preservation_weight=50, n_steps=2, second_moment_tokens=500
)


def test_what_the_cache_holds_is_not_planned(tmp_path) -> None:
    model = tiny_model()
    given = {"cache": tmp_path, "corpus": toy_corpus()}
    before = plan_memit(model, CONFIG, **given)
    assert before["second moments"].n_tokens == 500
    resources = Resources(seed=0, context_prefixes=PREFIXES, **given)
    Memit(CONFIG).edit(model, REQUESTS[:4], resources)
    after = plan_memit(model, CONFIG, **given)
    assert "second moments" not in after
    share = after["target hidden states"].n_tokens / before["target hidden states"].n_tokens
    assert 0.2 < share < 0.5  # two of six
    assert after["keys"] == before["keys"]


@pytest.mark.parametrize("option", ["share_subjects", "warm_start"])
def test_what_the_cache_holds_is_not_planned_with_options_that_tie_edits(tmp_path, option) -> None:
    about = REQUESTS[0]
    requests = [about, replace(about, case_id="again", target=REQUESTS[1].target), *REQUESTS[1:]]
    model, memit = tiny_model(), Memit(CONFIG.model_copy(update={option: True}))
    resources = Resources(0, tmp_path, corpus=toy_corpus(), context_prefixes=PREFIXES)

    def plan(some: Sequence[EditRequest]) -> int:
        stages = memit.estimate(model, some, resources, ExpectedCache())
        return sum(each.n_tokens for each in stages if each.name == "target hidden states")

    before = plan(requests)
    memit.edit(model, requests, resources)
    assert plan(requests) == 0 < before
    # Without the other fact about the subject it is another offset.
    assert plan(requests[1:]) > 0


def test_facts_that_share_an_offset_are_planned_as_one() -> None:
    about = REQUESTS[0]
    requests = [about, replace(about, case_id="again", target=REQUESTS[1].target)]
    resources = Resources(0, corpus=toy_corpus(), context_prefixes=PREFIXES)
    each, shared = (
        Memit(CONFIG.model_copy(update={"share_subjects": is_shared})).estimate(
            tiny_model(), requests, resources, ExpectedCache()
        )
        for is_shared in (False, True)
    )
    tokens = [
        next(stage.n_tokens for stage in stages if stage.name == "target hidden states")
        for stages in (each, shared)
    ]
    assert 0.7 * tokens[0] < tokens[1] < tokens[0]  # one KL term instead of two


def test_what_earlier_work_leaves_is_planned_once(tmp_path) -> None:
    expected = ExpectedCache()
    plans = [
        Memit(CONFIG).estimate(
            tiny_model(), requests, Resources(0, tmp_path, context_prefixes=PREFIXES), expected
        )
        for requests in (REQUESTS[:3], REQUESTS[:3])
    ]
    names = [[stage.name for stage in stages if stage.n_tokens] for stages in plans]
    assert names == [["second moments", "target hidden states", "keys"], ["keys"]]


@pytest.mark.parametrize("editor", [Memit, Rome, FineTune])
def test_more_facts_cost_more(editor: type[Editor]) -> None:
    model = tiny_model()
    chosen = editor(editor.default_config(model)[0])

    def plan(requests: Sequence[object]) -> float:
        stages = chosen.estimate(model, requests, Resources(seed=0), ExpectedCache())
        assert all(stage.is_known and stage.n_peak_bytes > 0 for stage in stages)
        return sum(
            stage.n_flops + stage.n_double_flops
            for stage in stages
            if stage.name != "second moments"
        )

    assert 1.2 * plan(REQUESTS[:3]) < plan(REQUESTS) < 2.5 * plan(REQUESTS[:3])


def test_an_editor_that_says_nothing_is_unknown() -> None:
    class Silent(Unedited):
        name = "silent"
        computes_nothing = False

    (stage,) = Silent(Silent.config_type()).estimate(
        tiny_model(), REQUESTS, Resources(0), ExpectedCache()
    )
    assert not stage.is_known
    assert stage.chunks == "the editor does not say"
