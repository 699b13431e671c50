"""Streams of edits: state in the stream, each batch on the model as edited so far."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

from editbench.editors.alphaedit import AlphaEdit, AlphaEditConfig
from editbench.editors.base import Editor, Resources
from editbench.editors.closed_form.dials import Dials
from editbench.editors.closed_form.solving import PreservedValues
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.emmet import Emmet, EmmetConfig
from editbench.editors.finetune import FineTune, FineTuneConfig
from editbench.editors.keys.layer_sweep import LayerSweep
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.rome import Rome, RomeConfig
from editbench.editors.targets.optimizer import TargetOptimizer
from editbench.editors.unedited import Unedited
from editbench.edits.card import EditCard, hash_requests
from editbench.edits.edit import Edit
from editbench.edits.weight_edit import WeightEdit, make_dense
from editbench.errors import ConfigError, EditError
from editbench.models.editable import EditableModel
from editbench.plugins.manager import load_plugins
from editbench.requests import EditRequest
from editbench.second_moments.obtaining import LayerMoments, obtain_second_moments
from editbench.testing import check_editor, tiny_model, toy_cases, toy_corpus
from memit_core import capture

PREFIXES = ContextPrefixes((("",), ("Ana Lund met Boris Sato. ", "It is known. ")))
REQUESTS = [case.request for case in toy_cases(5)]
BATCHES = [REQUESTS[:2], REQUESTS[2:3], REQUESTS[3:]]
_TARGETS = {
    "n_steps": 3,
    "learning_rate": 0.2,
    "learning_rate_unit": "relative",
    "second_moment_tokens": 2_000,
}
_LAYERS = {"critical_layers": (0, 2), "preservation_weight": 50, **_TARGETS}
MEMIT = Memit(MemitConfig.parse(_LAYERS, "test"))
CLOSED_FORM: dict[str, Editor] = {
    "memit": MEMIT,
    "history": Memit(MemitConfig.parse({**_LAYERS, "history": True}, "test")),
    "ridge": Memit(MemitConfig.parse({**_LAYERS, "history": True, "ridge": 0.1}, "test")),
    "emmet": Emmet(EmmetConfig.parse(_LAYERS, "test")),
    "alphaedit": AlphaEdit(AlphaEditConfig.parse(_LAYERS, "test")),
    "rome": Rome(RomeConfig.parse({"critical_layers": [1], **_TARGETS}, "test")),
}
FINE_TUNE = FineTune(FineTuneConfig(layer=1, n_epochs=3, batch_size=2, learning_rate=5e-3))


@cache
def moments() -> Path:
    """Second moments of the tiny model, collected once."""
    folder = Path(mkdtemp())
    resources = Resources(seed=0, corpus=toy_corpus(), cache=folder)
    obtain_second_moments(tiny_model(), (0, 1, 2), 2_000, resources)
    (path,) = (folder / "second_moments").glob("*.safetensors")
    return path


def resources(**changes: object) -> Resources:
    given = {"seed": 0, "second_moments": moments(), "context_prefixes": PREFIXES}
    return Resources(**{**given, **changes})


def write(
    editor: Editor,
    model: EditableModel,
    batches: Sequence[Sequence[EditRequest]],
    **changes: object,
) -> list[Edit]:
    return list(editor.edit_stream(model, batches, resources(**changes)))


def weights_with(model: EditableModel, edit: Edit) -> dict[str, torch.Tensor]:
    with edit.applied(model):
        return {name: weight.clone() for name, weight in model.model.named_parameters()}


@pytest.fixture(params=CLOSED_FORM)
def editor(request: pytest.FixtureRequest) -> Editor:
    return CLOSED_FORM[request.param]


@pytest.mark.parametrize("kind", [Emmet, AlphaEdit])
def test_presets_keep_the_editor_contract(kind: type[Editor]) -> None:
    assert [result for result in check_editor(kind) if not result.passed] == []


def test_a_stream_of_one_batch_is_an_edit(editor: Editor) -> None:
    model = tiny_model()
    (stream,) = write(editor, model, [REQUESTS])
    edit = editor.edit(model, REQUESTS, resources())
    assert isinstance(stream, WeightEdit)
    assert isinstance(edit, WeightEdit)
    assert stream.identity == edit.identity
    assert stream.card == edit.card


@pytest.mark.parametrize("name", ["memit", "emmet", "rome"])
def test_batches_are_written_to_the_model_as_edited_so_far(name: str) -> None:
    """These carry nothing but weights from batch to batch, so that single edits do the same."""
    editor = CLOSED_FORM[name]
    model = tiny_model()
    edits = write(editor, model, BATCHES)
    assert [edit.card.n_edits for edit in edits] == [2, 3, 5]
    assert edits[-1].card.requests_hash == hash_requests(REQUESTS)
    total: Edit = editor.edit(model, BATCHES[0], resources())
    for batch in BATCHES[1:]:
        with total.applied(model):
            one = editor.edit(model, batch, resources())
        assert isinstance(one, WeightEdit)
        assert isinstance(total, WeightEdit)
        total = total + one
    found, expected = weights_with(model, edits[-1]), weights_with(model, total)
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)


def test_between_batches_the_model_is_as_it_was(editor: Editor) -> None:
    model = tiny_model()
    before = model.compute_fingerprint()
    stream = editor.edit_stream(model, BATCHES, resources())
    for _ in range(2):
        edit = next(stream)
        assert model.compute_fingerprint() == before
        assert edit.changes_something
    del stream  # whoever stops early leaves nothing behind
    assert model.compute_fingerprint() == before


def test_a_cache_changes_nothing_of_a_stream(editor: Editor, tmp_path: Path) -> None:
    """z of the unedited model, and of a model with other facts on it, are never taken for it."""
    model = tiny_model()
    plain = write(editor, model, BATCHES)
    write(editor, model, [REQUESTS], cache=tmp_path)  # all z of the unedited model
    first, again = (write(editor, model, BATCHES, cache=tmp_path) for _ in range(2))
    for expected, one, other in zip(plain, first, again, strict=True):
        assert isinstance(expected, WeightEdit)
        assert isinstance(one, WeightEdit)
        assert isinstance(other, WeightEdit)
        assert one.identity == other.identity
        for name in ("target_loss", "target_steps", "facts"):
            assert one.card.extra[name] == expected.card.extra[name]
        wanted, found = weights_with(model, expected), weights_with(model, one)
        for name, weight in wanted.items():  # factors from the cache may round differently
            torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6)


def test_history_holds_what_was_written_before() -> None:
    """Its values move less when the next batches come."""
    model = tiny_model()
    moved = {}
    for name in ("memit", "history"):
        first, *_, last = write(CLOSED_FORM[name], model, BATCHES)
        assert isinstance(first, WeightEdit)
        assert isinstance(last, WeightEdit)
        weight = "transformer.h.0.mlp.c_proj.weight"  # keys of the first layer do not drift
        early, late = (each.updates[weight].dense() for each in (first, last))
        keys = torch.linalg.qr(first.updates[weight].right.double()).Q
        moved[name] = ((late - early).double() @ keys).norm()
    assert moved["history"] < 0.9 * moved["memit"]


def test_self_checks_run_once_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for kind, name in (
        (TargetOptimizer, "_try_replay"),
        (LayerSweep, "_agrees"),
        (LayerSweep, "_can_open"),
    ):
        plain = getattr(kind, name)

        def note(self: object, *arguments: object, name: str = name, plain=plain) -> object:
            calls.append(name)
            return plain(self, *arguments)

        monkeypatch.setattr(kind, name, note)
    write(MEMIT, tiny_model(), BATCHES)
    assert sorted(calls) == ["_agrees", "_can_open", "_try_replay"]


def statuses(editor: Editor) -> list[str]:
    (edit,) = write(editor, tiny_model(), [REQUESTS[:2]])
    facts = edit.card.extra["facts"]
    assert [fact["case_id"] for fact in facts] == [request.case_id for request in REQUESTS[:2]]
    return [fact["status"] for fact in facts]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"clamp_factor": 100.0}, "written"),
        ({"clamp_factor": 1e-3}, "clamped"),
        ({"stop_loss": 1e3}, "stopped early"),
    ],
)
@pytest.mark.parametrize("name", ["memit", "rome"])
def test_every_fact_has_a_status(name: str, change: dict[str, float], status: str) -> None:
    editor = CLOSED_FORM[name]
    changed = editor.config.updated(change, "test")
    assert statuses(type(editor)(changed)) == [status, status]


def test_a_fact_that_cannot_be_written_is_said_to_be_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moment = torch.diag(torch.tensor([1.0, 2.0, 5.0, 7.0]).double())
    dials = Dials(ridge=1.0, history=True, null_space=(0.5, "share"))
    preserved = PreservedValues(LayerMoments({1: lambda: moment}), dials, None)
    keys = torch.tensor([[1.0, 1, 1, 1], [1e-5, 0, 1, 1]])
    assert preserved.is_open(1, keys).tolist() == [True, False]
    is_open = PreservedValues.is_open
    monkeypatch.setattr(
        PreservedValues, "is_open", lambda *args: is_open(*args) & torch.tensor([True, False])
    )
    (edit,) = write(CLOSED_FORM["alphaedit"], tiny_model(), [REQUESTS[:2]])
    first, second = edit.card.extra["facts"]
    assert first["status"] != "skipped"
    assert second["status"] == "skipped"
    assert "outside of the null space at every layer" in second["why"]


def test_one_fact_alone_has_no_slack_in_emmet() -> None:
    """Its residual is met exactly at the last layer."""
    model = tiny_model()
    exact = Emmet(EmmetConfig.parse({**_LAYERS, "slack": 0.0}, "test"))
    one, other = (
        each.edit(model, REQUESTS[:1], resources()) for each in (CLOSED_FORM["emmet"], exact)
    )
    assert isinstance(one, WeightEdit)
    assert isinstance(other, WeightEdit)
    assert one.identity == other.identity
    two = CLOSED_FORM["emmet"].edit(model, REQUESTS[:2], resources())
    assert isinstance(two, WeightEdit)
    assert two.identity != exact.edit(model, REQUESTS[:2], resources()).identity  # type: ignore[attr-defined]


def test_one_fact_alone_keeps_its_slack_where_errors_are_fed_back() -> None:
    """A last batch of one must not end a stream that has errors to feed back."""
    values = {**_LAYERS, "finish": "rect", "error_feedback": True, "slack": 0.1}
    editor = Emmet(EmmetConfig.parse(values, "test"))
    *_, edit = write(editor, tiny_model(), [REQUESTS[:2], REQUESTS[2:3]])
    assert len(edit.card.extra["facts"]) == 3


def test_a_null_space_needs_a_ridge() -> None:
    with pytest.raises(ConfigError, match="a null space needs a ridge above 0"):
        AlphaEditConfig.parse({**_LAYERS, "ridge": 0}, "test")


class HookEdit(Edit):
    """An edit of somebody else, that changes no weight."""

    def __init__(self, model: EditableModel, requests: Sequence[EditRequest]) -> None:
        self.card = EditCard.of(model, editor="hook", config={}, requests=requests)
        self.offset = len(requests)

    @property
    def changes_something(self) -> bool:
        return True

    @contextmanager
    def applied(self, model: EditableModel) -> Iterator[None]:
        self.check_fits(model)
        module = model.model.get_submodule(model.architecture.mlp_projections[0])
        handle = module.register_forward_hook(lambda module, inputs, out: out + self.offset)
        try:
            yield
        finally:
            handle.remove()

    def save(self, path: Path) -> None:
        raise NotImplementedError


class HookEditor(Editor):
    """Somebody else's editor, which knows nothing of streams."""

    name = "hook"

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], resources: Resources
    ) -> Edit:
        return HookEdit(model, requests)


def test_every_editor_writes_streams() -> None:
    model = tiny_model()
    before = model.compute_fingerprint()
    edits = write(FINE_TUNE, model, BATCHES)
    assert model.compute_fingerprint() == before
    first = FINE_TUNE.edit(model, BATCHES[0], resources())
    assert isinstance(first, WeightEdit)
    assert edits[0].card == first.card
    with first.applied(model):
        second = FINE_TUNE.edit(model, BATCHES[1], resources())
    assert isinstance(second, WeightEdit)
    for name, weight in weights_with(model, first + second).items():
        assert torch.equal(weights_with(model, edits[1])[name], weight)
    last = edits[-1].card
    assert (last.editor, last.n_edits, last.edits_on) == ("ft-w", 5, ())
    assert last.requests_hash == hash_requests(REQUESTS)
    assert all(each["losses"] for each in last.extra["batches"])
    assert isinstance(edits[-1], WeightEdit)


def test_streams_of_edits_that_are_no_sums() -> None:
    model = tiny_model()
    layer, inputs = model.architecture.mlp_projections[0], model.batch([[1, 2, 3]])

    def run() -> torch.Tensor:
        with torch.no_grad(), capture(model.model, outputs_of=[layer]) as seen:
            model.model(**inputs)
        return seen.outputs[layer]

    plain = run()
    edits = write(HookEditor(HookEditor.config_type()), model, BATCHES)
    for n_written, edit in zip((2, 3, 5), edits, strict=True):
        assert edit.changes_something
        assert edit.card.n_edits == n_written
        with edit.applied(model):
            torch.testing.assert_close(run(), plain + n_written)
    assert torch.equal(run(), plain)
    with pytest.raises(EditError, match="it is 3 edits that are put on one after another"):
        edits[-1].save(Path("nowhere"))
    *_, unedited = write(Unedited(Unedited.config_type()), model, BATCHES)
    assert not unedited.changes_something
    assert unedited.card.n_edits == 5


def test_facts_of_one_subject_share_their_key_and_are_written_all_the_same() -> None:
    same = [replace(REQUESTS[0], case_id=str(i), target=f" {w}") for i, w in enumerate("ab")]
    for name in ("memit", "emmet", "alphaedit"):
        (edit,) = write(CLOSED_FORM[name], tiny_model(), [same])
        assert edit.changes_something


@pytest.mark.parametrize(
    ("kind", "method", "theirs", "ours"),
    [
        (
            AlphaEditConfig,
            "AlphaEdit",
            {"nullspace_threshold": "2e-2", "L2": 10},
            {
                "null_space_threshold": 0.02,
                "null_space_unit": "absolute",
                "ridge": 10.0,
                "ridge_unit": "absolute",
                "history": True,
            },
        ),
        (
            EmmetConfig,
            "EMMET",
            {"emmet_lambda": 0.2, "update_norm_lambda": 3},
            {"slack": 0.2, "ridge": 3.0, "ridge_unit": "absolute"},
        ),
    ],
)
def test_the_authors_files_are_read(
    kind: type[AlphaEditConfig | EmmetConfig],
    method: str,
    theirs: dict[str, object],
    ours: dict[str, object],
) -> None:
    values = {"alg_name": method, "layers": [1, 2], "mom2_update_weight": 15_000, **theirs}
    assert kind.dialect is not None
    translated = kind.dialect.translate(values, kind.model_fields, "theirs.json")
    assert translated is not None
    config = kind.parse(translated.values, "theirs.json")
    assert config.critical_layers == (1, 2)
    assert {name: getattr(config, name) for name in ours} == ours


@pytest.mark.parametrize(
    "dials",
    [
        Dials(weight=20, history=True),
        Dials(weight=20, history=True, ridge=0.1),
        Dials(weight=20, history=True, slack=0.1),
        Dials(ridge=1.0, history=True, null_space=(0.5, "share")),
        Dials(weight=20, history=True, ridge=1.0, error_feedback=True),
    ],
)
@pytest.mark.parametrize("has_dead_axes", [False, True])
def test_what_a_stream_keeps_is_what_there_is_from_the_start(
    dials: Dials, has_dead_axes: bool
) -> None:
    """Prices that grow with every batch, and those of all earlier rows at once."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(80, 16, generator=generator, dtype=torch.float64)
    if has_dead_axes:
        tokens[:, 3] = 0  # some facts use it
    moments = LayerMoments({1: lambda: tokens.T @ tokens / len(tokens)})
    preserved, earlier = PreservedValues(moments, dials, None), []
    for _ in range(8):
        keys, residuals = (torch.randn(2, n, generator=generator).double() for n in (16, 4))
        found = make_dense(preserved.solve(1, keys, residuals))
        again = PreservedValues(moments, dials, None)
        for rows in earlier:
            again.add(1, rows)
        again._asked.add(1)
        torch.testing.assert_close(found, make_dense(again.solve(1, keys, residuals)))
        preserved.add(1, keys)
        earlier.append(keys)
    assert len(earlier) * 2 > 16 // 2  # history has become a part of the factors


@pytest.mark.parametrize("finish", ["rect", "prune", "sphere", "revive"])
@pytest.mark.parametrize("name", ["memit-history", "alphaedit", "evoedit", "encore", "blue", "nas"])
def test_any_finish_goes_with_any_preservation(name: str, finish: str) -> None:
    kind = load_plugins().get_editor(name)
    changes: dict[str, object] = {"finish": finish}
    if finish in ("rect", "prune"):
        changes["error_feedback"] = True
    editor = kind(kind.config_type.parse({**_LAYERS, **changes}, "test"))
    model = tiny_model()
    *_, edit = write(editor, model, BATCHES[:2])
    plain = kind(kind.config_type.parse(_LAYERS, "test"))
    *_, other = write(plain, model, BATCHES[:2])
    assert isinstance(edit, WeightEdit)
    assert isinstance(other, WeightEdit)
    assert edit.changes_something
    assert edit.identity != other.identity


@pytest.mark.parametrize("finish", ["none", "prune"])
def test_a_sum_is_finished_where_an_edit_is_asked_for(
    finish: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = Memit(MemitConfig.parse({**_LAYERS, "finish": finish}, "test"))
    expected = write(editor, tiny_model(), BATCHES)[-1]
    finished: list[object] = []
    plain = Memit.finish_total

    def note(self: Memit, *given: Any) -> Any:
        finished.append(given)
        return plain(self, *given)

    monkeypatch.setattr(Memit, "finish_total", note)
    written: list[int] = []
    edit = editor.edit_in_batches(tiny_model(), BATCHES, resources(), written.append)
    assert len(finished) == len(editor.layers)
    assert written == [1, 2]
    assert edit.identity == expected.identity
    assert edit.card == expected.card
