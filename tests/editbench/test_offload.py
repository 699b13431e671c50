"""Models that accelerate has spread over memory and disk: every editor and every number as usual.

The plain model is the oracle. What computes is the same processor, so numbers are equal exactly.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, dispatch_model

from editbench.editors.base import Editor, Resources
from editbench.editors.finetune import FineTune, FineTuneConfig
from editbench.editors.memit import Memit
from editbench.editors.mend.editor import Mend
from editbench.editors.rome import Rome
from editbench.edits.export import export_model
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import ConfigError, EditError
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.models.loading import DTypeName, load_model
from editbench.progress import report_nothing
from editbench.questions import Generate, Read, Score
from editbench.second_moments.collection import collect_second_moments
from editbench.testing import config_for_check, tiny_model, tiny_tokenizer, toy_cases, toy_corpus
from editbench.tracing.facts import facts_of_cases
from editbench.tracing.prompts import prompt_of
from editbench.tracing.settings import TraceSettings
from editbench.tracing.tracer import Tracer

Place = Callable[..., EditableModel]

CASES = toy_cases(6)
REQUESTS = [case.request for case in CASES[:2]]
QUESTIONS = [
    Score("Ana Lund works as a", "poet"),
    Score("Everybody knows that Greta Rossi is a", "singer"),
    Generate("Ana Lund is", 20),
    Read("Boris Marek works as a judge, and Elif Sato praised Boris Marek."),
]
# Editors, and what else they can do: MEMIT on attention, fine-tuning that trains whole blocks.
KINDS = [Memit, "memit of attention", Rome, FineTune, "ft-w of a block", Mend]
Kind = type[Editor] | str
WEIGHT, TIED = "transformer.h.3.mlp.c_proj.weight", "lm_head.weight"


def in_ram(folder: Path, dtype: DTypeName = "float32") -> EditableModel:
    """All weights wait in memory, as those of a GPU's model would."""
    model = load_model(str(folder), specs={}, dtype=dtype, device="cpu")
    cpu_offload(model.model, execution_device="cpu")
    return model


def on_disk(folder: Path, dtype: DTypeName = "float32") -> EditableModel:
    """Half of the blocks wait in the model's own file, and so do the embeddings."""
    places = {"transformer.wte": "disk", "transformer.wpe": "cpu", "lm_head": "disk"}
    places |= {f"transformer.h.{index}": ("cpu", "disk")[index % 2] for index in range(4)}
    places["transformer.ln_f"] = "disk"
    return load_model(str(folder), specs={}, dtype=dtype, device_map=places)


@pytest.fixture(params=[in_ram, on_disk], ids=lambda place: place.__name__)
def place(request: pytest.FixtureRequest) -> Place:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def plain(folder: Path) -> EditableModel:
    return load_model(str(folder), specs={}, device="cpu")


@pytest.fixture
def moved(place: Place, folder: Path) -> EditableModel:
    model = place(folder)
    assert any(parameter.is_meta for parameter in model.model.parameters())
    return model


def ask(model: EditableModel) -> object:
    return answer_questions(model, QUESTIONS, seed=0, token_budget=64)


def make_editor(kind: Kind, model: EditableModel, folder: Path) -> Editor:
    """An editor that is quick."""
    if kind == "ft-w of a block":
        return FineTune(FineTuneConfig.preset("reference", layer=3, n_epochs=2))
    if kind == "memit of attention":
        attention = make_editor(Memit, model, folder).config.updated(
            {"module": "attention"}, "test"
        )
        return Memit(attention)
    config = config_for_check(kind, model, CASES, folder)
    brief = {"n_steps": 3, "n_context_prefixes": 1, "second_moment_tokens": 300}
    fields = {
        Memit: brief | {"critical_layers": (2, 3)},
        Rome: brief | {"critical_layers": (3,), "context_prefix_lengths": (4,)},
        FineTune: {"n_epochs": 2},
    }
    return kind(config.updated(fields.get(kind, {}), "test"))


@dataclass(frozen=True)
class Outcome:
    """All that an edit is, and all that it does to a model."""

    file: str
    relative_norms: dict[str, object]
    before: str
    during: str
    answers: object
    exported: str


@pytest.fixture(scope="module")
def try_editor(
    plain: EditableModel, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Kind, EditableModel | None], Outcome]:
    """Edits a model and sees what that does; the plain one is edited once."""
    trained = tmp_path_factory.mktemp("mend")

    @cache
    def try_it(kind: Kind, model: EditableModel | None) -> Outcome:
        model = plain if model is None else model
        own = tmp_path_factory.mktemp("edits")
        resources = Resources(seed=0, corpus=toy_corpus())
        # What trains MEND is of no interest here, but for its own test below.
        editor = make_editor(kind, plain if kind is Mend else model, trained)
        edit = editor.edit(model, REQUESTS, resources)
        assert isinstance(edit, WeightEdit)
        assert edit.card.extra.get("replay_failure") is None
        edit.save(own / "edit")
        before = model.compute_fingerprint()
        with edit.applied(model):
            answers, during = ask(model), model.compute_fingerprint()
        assert model.compute_fingerprint() == before
        export_model(edit, model, own / "edited", tokenizer=tiny_tokenizer())
        return Outcome(
            file=hashlib.sha256((own / "edit").read_bytes()).hexdigest(),
            relative_norms=edit.card.extra["updates"],
            before=before,
            during=during,
            answers=answers,
            exported=load_model(str(own / "edited"), specs={}, device="cpu").fingerprint,
        )

    return try_it


@pytest.mark.parametrize("kind", KINDS)
def test_editors(kind: Kind, moved: EditableModel, try_editor) -> None:
    found = try_editor(kind, moved)
    assert found == try_editor(kind, None)
    assert found.before != found.during == found.exported


def test_half_precision(place: Place, folder: Path) -> None:
    """What is put on and taken off is in the weights' own type, wherever they wait."""
    found = []
    for load in (partial(load_model, specs={}, device="cpu"), place):
        model = load(str(folder), dtype="bfloat16")
        assert model.model.dtype == torch.bfloat16
        editor = make_editor(Memit, model, folder)
        edit = editor.edit(model, REQUESTS, Resources(seed=0, corpus=toy_corpus()))
        assert edit.card.extra["replay_failure"] is None
        before = model.compute_fingerprint()
        with edit.applied(model):
            found.append((before, ask(model), model.compute_fingerprint()))
        assert model.compute_fingerprint() == before != found[-1][2]
    assert found[0] == found[1]


def test_mend_can_be_trained(plain: EditableModel, moved: EditableModel, tmp_path: Path) -> None:
    recalled = []
    for name, model in (("plain", plain), ("moved", moved)):
        (tmp_path / name).mkdir()
        config = config_for_check(Mend, model, CASES, tmp_path / name)
        recalled.append(config.weights_sha256)
    assert recalled[0] == recalled[1]


def test_answers(plain: EditableModel, moved: EditableModel) -> None:
    assert moved.fingerprint == plain.fingerprint
    assert ask(moved) == ask(plain)


def test_tracing(plain: EditableModel, moved: EditableModel) -> None:
    settings = TraceSettings(noise_level=0.1, n_samples=2, window=2, noise_source="prompt", seed=0)
    traces = []
    for model in (plain, moved):
        tracer = Tracer(model, settings)
        traces.append(tracer.trace(prompt_of(model, facts_of_cases(CASES)[0])))
        assert tracer.replay_failure is None
    assert traces[1].low_score == traces[0].low_score
    for kind, scores in traces[0].scores.items():
        assert np.array_equal(traces[1].scores[kind], scores)


def test_second_moments(plain: EditableModel, moved: EditableModel) -> None:
    first, second = (
        collect_second_moments(model, toy_corpus(), [0, 3], 500, report_nothing)
        for model in (plain, moved)
    )
    for layer in (0, 3):
        assert torch.equal(first[layer].moment(), second[layer].moment())


def test_tied_weights_stay_tied(plain: EditableModel, moved: EditableModel) -> None:
    chance = torch.Generator().manual_seed(0)
    update = torch.randn(plain.model.get_parameter(TIED).shape, generator=chance)
    during = []
    for model in (plain, moved):
        edit = WeightEdit.build(
            model, editor="test", config={}, requests=REQUESTS, updates={TIED: update}
        )
        before = ask(model)
        with edit.applied(model):
            during.append((ask(model), model.compute_fingerprint()))
        assert ask(model) == before != during[-1][0]
    assert during[0] == during[1]


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_other_architectures(
    family: str, families, make_network, tokenizers, tmp_path: Path
) -> None:
    folder = tmp_path / family
    make_network(families[family][0]).save_pretrained(folder)
    tokenizers["bos"].save_pretrained(folder)
    inner = families[family][1].partition(".")[0]
    updates = []
    for device_map in (None, {inner: "disk", "lm_head": "disk"}):
        model = load_model(str(folder), specs={}, device_map=device_map)
        config = config_for_check(Memit, model, CASES, tmp_path)
        quick = {"n_steps": 2, "second_moment_tokens": 200, "n_context_prefixes": 0}
        editor = Memit(config.updated(quick, "test"))
        edit = editor.edit(model, REQUESTS[:1], Resources(seed=0, corpus=toy_corpus()))
        assert edit.card.extra["replay_failure"] is None
        updates.append(edit.updates)
    for name, update in updates[0].items():
        assert torch.equal(update.left, updates[1][name].left)
        assert torch.equal(update.right, updates[1][name].right)


def test_the_file_that_weights_wait_in_is_never_written_to(folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    before = file.read_bytes()
    model = on_disk(folder)
    update = torch.ones(model.model.get_parameter(WEIGHT).T.shape)
    edit = WeightEdit.build(
        model, editor="test", config={}, requests=REQUESTS, updates={WEIGHT: update}
    )
    with edit.applied(model):
        ask(model)
        assert file.read_bytes() == before
    assert file.read_bytes() == before


def test_weights_without_values_cannot_be_edited(plain: EditableModel) -> None:
    hollow = tiny_model()
    edit = WeightEdit.build(
        hollow, editor="test", config={}, requests=REQUESTS, updates={WEIGHT: torch.ones(24, 96)}
    )
    assert hollow.fingerprint == edit.card.model_fingerprint
    hollow.model.to("meta")
    with (
        pytest.raises(EditError, match=r"'tiny': .*'.*c_proj\.weight' has no values"),
        edit.applied(hollow),
    ):
        pytest.fail("the body must not run")


def test_a_device_map_may_be_written_as_json(folder: Path, plain: EditableModel) -> None:
    places = '{"transformer": "disk", "lm_head": "disk"}'
    model = load_model(str(folder), specs={}, device_map=places)
    assert model.model.get_parameter(WEIGHT).is_meta
    assert model.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ('{"transformer": ', "option 'device_map': malformed JSON, got"),
        ('{"transformer": [0]}', "option 'device_map': a place is neither a number nor a name"),
    ],
)
def test_bad_device_maps(folder: Path, device_map: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(str(folder), specs={}, device_map=device_map)


def test_pickled_weights_cannot_wait_on_disk(folder: Path, tmp_path: Path) -> None:
    model = tiny_model()
    model.model.config.save_pretrained(tmp_path)
    torch.save(model.model.state_dict(), tmp_path / "pytorch_model.bin")
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"only as safetensors, got .* with pickled ones"):
        load_model(
            str(tmp_path),
            specs={},
            allow_pickle=True,
            device_map={"transformer": "disk", "lm_head": "disk"},
        )


def check_alike(
    first: EditableModel, second: EditableModel, kind: Kind, folder: Path, *, on_same_device: bool
) -> None:
    """Edit two models that hold the same weights in other places, and see that it is the same.

    Devices of two kinds round differently, so that of texts that are sampled only the length is
    certain, and numbers are alike within what rounding does to the steps of an editor.
    """
    assert second.fingerprint == first.fingerprint
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if on_same_device else {"atol": 5e-3, "rtol": 1e-2}
    answers, moments = [], []
    # What trains MEND has its own tests; here both have the same trained network.
    editor = make_editor(kind, first, folder)
    for model in (first, second):
        resources = Resources(seed=0, corpus=toy_corpus())
        moments.append(collect_second_moments(model, toy_corpus(), [0, 3], 500, report_nothing))
        edit = editor.edit(model, REQUESTS, resources)
        assert isinstance(edit, WeightEdit)
        assert edit.card.extra.get("replay_failure") is None
        before = ask(model)
        with edit.applied(model):
            answers.append(ask(model))
        assert answers[-1] != before == ask(model)
        assert model.compute_fingerprint() == first.fingerprint
    for layer in (0, 3):
        one, other = (each[layer].moment().cpu() for each in moments)
        torch.testing.assert_close(other, one, **tolerance)
    for question in QUESTIONS:
        one, other = (each[question] for each in answers)
        if isinstance(question, Generate):
            assert len(other.text) > 0
            assert not on_same_device or other == one
        else:
            np.testing.assert_allclose(other.log_probs, one.log_probs, **tolerance)


def split_in_two(folder: Path, first: int | str, second: int | str) -> EditableModel:
    """The first two blocks and all that is around them on one device, the others on another."""
    model = load_model(str(folder), specs={}, device="cpu")
    places = dict.fromkeys(["transformer.wte", "lm_head", "transformer.wpe"], first)
    places |= {f"transformer.h.{index}": second if index > 1 else first for index in range(4)}
    dispatch_model(model.model, {**places, "transformer.ln_f": second}, main_device=first)
    return model


def blocks_waiting_for(folder: Path, device: int | str) -> EditableModel:
    """A device computes with what the processor's memory and the disk hold."""
    places = dict.fromkeys(["transformer.wte", "lm_head", "transformer.wpe"], device)
    places |= {f"transformer.h.{index}": ("cpu", "disk")[index % 2] for index in range(4)}
    return load_model(str(folder), specs={}, device_map={**places, "transformer.ln_f": device})


@pytest.mark.parametrize("spread", ["split", "waiting"])
def test_what_is_tried_on_gpus_holds_on_the_processor(
    spread: str, plain: EditableModel, folder: Path, tmp_path: Path
) -> None:
    model = split_in_two(folder, "cpu", "cpu") if spread == "split" else on_disk(folder)
    check_alike(plain, model, Memit, tmp_path, on_same_device=True)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_two_devices(kind: Kind, plain: EditableModel, folder: Path, tmp_path: Path) -> None:
    """Blocks on two devices, one of them the processor where there is a single GPU."""
    n_gpus = torch.cuda.device_count()
    model = split_in_two(folder, 0 if n_gpus > 1 else "cpu", n_gpus - 1)
    check_alike(plain, model, kind, tmp_path, on_same_device=False)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_offloaded_from_a_gpu(kind: Kind, folder: Path, tmp_path: Path) -> None:
    """The processor's memory and the disk hold what the GPU computes with."""
    whole = load_model(str(folder), specs={}, device="cuda:0")
    check_alike(whole, blocks_waiting_for(folder, 0), kind, tmp_path, on_same_device=True)
