"""Models that accelerate has spread over memory and disk: every editor and every number as usual.

The plain model is the oracle. What computes is the same processor, so numbers are equal exactly.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, dispatch_model

from editbench.editors.base import Editor, Resources, report_nothing
from editbench.editors.finetune import FineTune, FineTuneConfig
from editbench.editors.memit import Memit
from editbench.editors.mend.editor import Mend
from editbench.editors.parts.second_moments.obtaining import collect_second_moments
from editbench.editors.rome import Rome
from editbench.edits.export import export_model
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import ConfigError, EditError
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.models.loading import load_model
from editbench.questions import Generate, Read, Score
from editbench.testing import tiny_model, tiny_tokenizer, toy_cases, toy_corpus
from editbench.tracing.facts import facts_of_cases
from editbench.tracing.prompts import prompt_of
from editbench.tracing.settings import TraceSettings
from editbench.tracing.tracer import Tracer

Place = Callable[[Path], EditableModel]

CASES = toy_cases(6)
REQUESTS = [case.request for case in CASES[:2]]
QUESTIONS = [
    Score("Ana Lund works as a", "poet"),
    Score("Everybody knows that Greta Rossi is a", "singer"),
    Generate("Ana Lund is", 20),
    Read("Boris Marek works as a judge, and Elif Sato praised Boris Marek."),
]
WEIGHT, TIED = "transformer.h.3.mlp.c_proj.weight", "lm_head.weight"


def in_ram(folder: Path) -> EditableModel:
    """All weights wait in memory, as those of a GPU's model would."""
    model = load_model(str(folder), specs={}, device="cpu")
    cpu_offload(model.model, execution_device="cpu")
    return model


def on_disk(folder: Path) -> EditableModel:
    """Half of the blocks wait in the model's own file, and so do the embeddings."""
    places = {"transformer.wte": "disk", "transformer.wpe": "cpu", "lm_head": "disk"}
    places |= {f"transformer.h.{index}": ("cpu", "disk")[index % 2] for index in range(4)}
    return load_model(str(folder), specs={}, device_map={**places, "transformer.ln_f": "disk"})


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


def make_editor(kind: type[Editor] | str, model: EditableModel, folder: Path) -> Editor:
    """An editor that is quick; of fine-tuning also the form that trains whole blocks."""
    if kind == "ft-w of a block":
        return FineTune(FineTuneConfig.preset("reference", layer=3, n_epochs=2))
    config = kind.config_for_check(model, CASES, folder)
    brief = {"n_steps": 3, "n_context_prefixes": 1, "second_moment_tokens": 300}
    fields = {
        Memit: brief | {"critical_layers": (2, 3)},
        Rome: brief | {"layer": 3, "context_prefix_lengths": (4,)},
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
) -> Callable[[type[Editor] | str, EditableModel | None], Outcome]:
    """Edits a model and sees what that does; the plain one is edited once."""
    trained = tmp_path_factory.mktemp("mend")

    @cache
    def try_it(kind: type[Editor] | str, model: EditableModel | None) -> Outcome:
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


@pytest.mark.parametrize("kind", [Memit, Rome, FineTune, "ft-w of a block", Mend])
def test_editors(kind: type[Editor] | str, moved: EditableModel, try_editor) -> None:
    found = try_editor(kind, moved)
    assert found == try_editor(kind, None)
    assert found.before != found.during == found.exported


def test_mend_can_be_trained(plain: EditableModel, moved: EditableModel, tmp_path: Path) -> None:
    recalled = []
    for name, model in (("plain", plain), ("moved", moved)):
        (tmp_path / name).mkdir()
        config = Mend.config_for_check(model, CASES, tmp_path / name)
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
        config = Memit.config_for_check(model, CASES, tmp_path)
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


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Memit, Rome, FineTune, Mend])
def test_two_devices(
    kind: type[Editor], plain: EditableModel, folder: Path, tmp_path: Path
) -> None:
    """Blocks on two devices, one of them the processor where there is a single GPU."""
    n_gpus = torch.cuda.device_count()
    first: int | str = 0 if n_gpus > 1 else "cpu"
    second = n_gpus - 1
    split = load_model(str(folder), specs={}, device="cpu")
    places: dict[str, int | str] = {"transformer.wte": first, "lm_head": first}
    places |= {"transformer.wpe": first, "transformer.ln_f": second}
    places |= {f"transformer.h.{index}": second if index > 1 else first for index in range(4)}
    dispatch_model(split.model, places, main_device=first)
    answers = []
    for model in (plain, split):
        own = tmp_path / str(len(answers))
        own.mkdir()
        resources = Resources(seed=0, corpus=toy_corpus())
        edit = make_editor(kind, model, own).edit(model, REQUESTS, resources)
        assert isinstance(edit, WeightEdit)
        assert edit.card.extra.get("replay_failure") is None
        with edit.applied(model):
            answers.append(ask(model)[QUESTIONS[0]])
    np.testing.assert_allclose(answers[1].log_probs, answers[0].log_probs, atol=5e-3)


@pytest.mark.gpu
def test_offloaded_from_a_gpu(plain: EditableModel, folder: Path) -> None:
    """The processor's memory and the disk hold what the GPU computes with."""
    places: dict[str, int | str] = {"transformer.wte": 0, "lm_head": 0, "transformer.wpe": 0}
    places |= {f"transformer.h.{index}": ("cpu", "disk")[index % 2] for index in range(4)}
    whole = load_model(str(folder), specs={}, device="cuda:0")
    spread = load_model(str(folder), specs={}, device_map={**places, "transformer.ln_f": 0})
    assert spread.fingerprint == plain.fingerprint
    config = Memit.config_for_check(plain, CASES, folder)
    first, second = (
        Memit(config).edit(model, REQUESTS, Resources(seed=0, corpus=toy_corpus()))
        for model in (whole, spread)
    )
    for name, update in first.updates.items():
        torch.testing.assert_close(second.updates[name].dense(), update.dense())
    with first.applied(whole), second.applied(spread):
        assert ask(spread) == ask(whole)
    assert spread.compute_fingerprint() == plain.fingerprint
