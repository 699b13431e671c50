"""Streams of closed-form editors against what their authors' code computed, batch by batch."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from editbench.cli.main import build_cli
from editbench.editors.closed_form import solving
from editbench.editors.closed_form.editor import ClosedForm
from editbench.editors.closed_form.hidden_goals import HiddenTargets
from editbench.editors.closed_form.solving import PreservedValues
from editbench.editors.dialect import UNUSED
from editbench.editors.memit import EncoreConfig
from editbench.edits.weight_edit import WeightEdit, make_dense
from editbench.plugins.manager import load_plugins
from memit_core import UpdateFactors, find_null_space


@dataclass
class Seen:
    """What a stream computed: for each batch z and its steps, for each layer keys, R and Δ."""

    z: list[torch.Tensor] = field(default_factory=list)
    n_steps: list[list[int]] = field(default_factory=list)
    layers: list[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    history: dict[int, list[torch.Tensor]] = field(default_factory=dict)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    noted = Seen()
    aim, solve, add = HiddenTargets._aim_at, PreservedValues.solve, PreservedValues.add

    def note_targets(self: HiddenTargets, requests: Any, layer: int, first: int) -> Any:
        aimed = aim(self, requests, layer, first)
        noted.z.append(aimed.states)
        noted.n_steps.append(aimed.found.n_steps.tolist())
        return aimed

    def note_solve(self: PreservedValues, layer: int, keys: Any, residuals: Any, slack: Any) -> Any:
        update = solve(self, layer, keys, residuals, slack)
        dense = update.dense() if isinstance(update, UpdateFactors) else update
        noted.layers.append((layer, keys, residuals, dense))
        return update

    def note_history(self: PreservedValues, layer: int, keys: Any, first: int) -> None:
        add(self, layer, keys, first)
        noted.history |= {
            each: [part.keys for part in written] for each, written in self._written.items()
        }

    monkeypatch.setattr(HiddenTargets, "_aim_at", note_targets)
    monkeypatch.setattr(PreservedValues, "solve", note_solve)
    monkeypatch.setattr(PreservedValues, "add", note_history)
    return noted


@pytest.fixture
def family(golden, shared: Path) -> Path:
    folder = shared / "reference" / "golden_family" / golden.folder.name
    if not folder.is_dir():
        pytest.skip(f"needs the reference vectors in {folder}")
    return folder


@pytest.fixture
def stored_null_space(golden, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authors' P, which is that of a float32 decomposition, in place of the exact one."""
    stored = load_file(family / "nullspace.safetensors")
    moments = load_file(golden.folder / "covariance.safetensors")

    def find(moment: torch.Tensor, threshold: float, unit: str) -> torch.Tensor:
        (layer,) = (
            layer
            for layer in golden.config.critical_layers
            if torch.equal(moments[f"layer.{layer}.moment"].double(), moment.double())
        )
        eigenvalues, vectors = torch.linalg.eigh(stored[f"layer.{layer}.P"].double())
        return vectors[:, eigenvalues > 0.5]

    monkeypatch.setattr(solving, "find_null_space", find)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def stored_update(
    vectors: dict[str, torch.Tensor], batch: int, layer: int, shape: torch.Size
) -> torch.Tensor | None:
    """Δ, `[d_value, d_key]`, where it is stored."""
    start = f"batch.{batch}.layer.{layer}"
    if (before := vectors.get(f"{start}.update_before_post")) is not None:
        return before if before.shape == shape else before.T
    for left, right in (("update_left", "update_right"), ("adj_k", "resid")):
        if f"{start}.{left}" in vectors:
            return (vectors[f"{start}.{left}"].double() @ vectors[f"{start}.{right}"].double()).T
    return None


def write_stream(editor: ClosedForm, golden, sizes: list[int]) -> list[WeightEdit]:
    requests, batches = golden.requests, []
    for size in sizes:
        batches.append(requests[:size])
        requests = requests[size:]
    before = golden.model.compute_fingerprint()
    edits = []
    for edit in editor.edit_stream(golden.model, batches, golden.resources):
        assert golden.model.compute_fingerprint() == before, "between batches it is as it was"
        edits.append(edit)
    return edits


def check(golden, family: Path, name: str, seen: Seen, edits: list[WeightEdit]) -> None:
    """Compare with the vectors of one set; tolerances are those that its README suggests."""
    vectors = load_file(family / f"{name}.safetensors")
    record = json.loads((family / f"{name}.json").read_text())
    layers = record["hparams"]["layers"]
    told_batches = record["batches"][: len(edits)]
    has_one_z = "batch.0.z" in vectors
    assert len(seen.z) == len(edits) * (1 if has_one_z else len(layers))
    z, n_steps = iter(seen.z), iter(seen.n_steps)
    for batch, told in enumerate(told_batches):
        near, far = (1e-4, 2e-3) if batch == 0 else (1e-3, 5e-3)
        found_steps, told_steps = [], [one["forward_passes"] for one in told["z"]]
        for where in ["z"] if has_one_z else [f"layer.{layer}.z" for layer in layers]:
            assert relative_error(next(z), vectors[f"batch.{batch}.{where}"]) < near
            found_steps += next(n_steps)
        assert sorted(found_steps) == sorted(told_steps)
        for index, layer in enumerate(layers):
            found, keys, residuals, update = seen.layers[batch * len(layers) + index]
            assert found == layer
            start = f"batch.{batch}.layer.{layer}"
            # Keys of upper layers carry what lower ones' updates differ by.
            assert relative_error(keys, vectors[f"{start}.keys"]) < (near if index == 0 else 1e-3)
            assert relative_error(residuals, vectors[f"{start}.resid"]) < 1e-3
            expected = stored_update(vectors, batch, layer, update.shape)
            if expected is not None:
                assert relative_error(update, expected) < far
    for layer in layers:
        if (history := vectors.get(f"layer.{layer}.H_final")) is not None:
            written = torch.cat(seen.history[layer]).double()
            assert relative_error(written.T @ written, history) < 1e-3
        total = vectors.get(f"layer.{layer}.total_dW")
        if total is None or len(edits) < len(record["batches"]):
            continue
        projection = golden.model.architecture.projection(layer, "mlp")
        weight = golden.model.architecture.weight_name(projection)
        parameter = golden.model.model.get_parameter(weight)
        with edits[-1].applied(golden.model):
            edited = parameter.clone()
        # Of GPT-J's last batch two entries are within 1e-4 of RECT's thresholds, as near as
        # updates are there, so that rounding says on which side of them.
        is_near = (name, golden.folder.name) == ("rect", "gptj")
        assert relative_error(edited - parameter, total) < (2e-2 if is_near else 1e-3)


def make(golden, family: Path, name: str, record: str, **changes: object) -> ClosedForm:
    """An editor by its name, with what the authors' code was run with and what it calls them."""
    used = json.loads((family / f"{record}.json").read_text())["hparams"]
    kind = load_plugins().get_editor(name)
    known = set(kind.config_type.dialect.names) | set(UNUSED)
    theirs = {field: value for field, value in used.items() if field in known}
    translated = kind.config_type.dialect.translate(theirs, kind.config_type.model_fields, record)
    assert translated is not None
    values = {**translated.values, **changes}
    return kind(kind.config_type.parse(values, "test"))


@pytest.mark.parametrize(
    ("name", "record", "sizes", "changes"),
    [
        ("memit-history", "memit_history", [5, 5, 5, 5], {}),
        ("emmet", "emmet_history", [5, 5, 5, 5], {"history": True}),
        ("emmet", "emmet_batch20", [20], {}),
        ("emmet", "emmet_single", [1], {}),
        ("encore", "encore_as_shipped", [5, 5, 5, 5], EncoreConfig.presets["reference"]),
        ("encore", "encore_mpes_all_tokens", [5, 5, 5, 5], {}),
        ("blue", "blue_memit", [5, 5, 5, 5], {}),
        ("rect", "rect", [5, 5, 5, 5], {}),
        ("prune", "prune", [5, 5, 5, 5], {}),
        ("ote-prune", "ote_prune_err", [5, 5, 5, 5], {}),
    ],
)
def test_against_the_authors_code(
    golden, family: Path, seen: Seen, name: str, record: str, sizes: list[int], changes: Any
) -> None:
    edits = write_stream(make(golden, family, name, record, **changes), golden, sizes)
    check(golden, family, record, seen, edits)


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("alphaedit", "alphaedit"),
        ("evoedit", "evoedit"),
        ("nas", "nas"),
        ("nas", "nas_skip"),
        ("blue", "blue_alphaedit"),
    ],
)
@pytest.mark.usefixtures("stored_null_space")
def test_null_spaces_against_the_authors_code(
    golden, family: Path, seen: Seen, name: str, record: str
) -> None:
    changes: dict[str, object] = {}
    if name == "blue":
        used = json.loads((family / f"{record}.json").read_text())["hparams"]
        changes = {
            "ridge": used["L2"],
            "null_space_threshold": used["nullspace_threshold"],
            "null_space_unit": "absolute",
        }
    n_batches = 1 if record == "nas_skip" else 4
    editor = make(golden, family, name, record, **changes)
    edits = write_stream(editor, golden, [5] * n_batches)
    check(golden, family, record, seen, edits)


@pytest.mark.usefixtures("stored_null_space")
def test_facts_that_were_written_before_are_skipped_by_evoedit(golden, family: Path) -> None:
    editor = make(golden, family, "evoedit", "evoedit")
    requests = golden.requests
    batches = [requests[:5], requests[5:10], requests[:5]]
    *_, before, after = editor.edit_stream(golden.model, batches, golden.resources)
    for name, update in before.updates.items():
        assert torch.equal(make_dense(update), make_dense(after.updates[name]))
    statuses = [fact["status"] for fact in after.card.extra["facts"]]
    assert "skipped" not in statuses[:5]
    assert statuses[10:] == ["skipped"] * 5


def test_outliers_are_skipped_by_nas(golden, family: Path) -> None:
    told = json.loads((family / "nas_skip.json").read_text())["batches"][0]["z"]
    editor = make(golden, family, "nas", "nas_skip")
    (edit,) = editor.edit_stream(golden.model, [golden.requests[:5]], golden.resources)
    for fact, one in zip(edit.card.extra["facts"], told, strict=True):
        assert (fact["status"] == "skipped") == one["skipped"]
    assert any(one["skipped"] for one in told)


def test_alphaedit_in_the_exact_null_space(golden, family: Path, seen: Seen) -> None:
    write_stream(make(golden, family, "alphaedit", "alphaedit"), golden, [5])
    vectors = load_file(family / "alphaedit.safetensors")
    for layer, _, _, update in seen.layers:
        expected = stored_update(vectors, 0, layer, update.shape)
        assert expected is not None
        assert relative_error(update, expected) < 2e-2


def test_the_null_space_has_the_authors_rank(golden, family: Path) -> None:
    stored = load_file(family / "nullspace.safetensors")
    moments = load_file(golden.folder / "covariance.safetensors")
    used = json.loads((family / "alphaedit.json").read_text())["hparams"]
    for layer in golden.config.critical_layers:
        moment = moments[f"layer.{layer}.moment"]
        basis = find_null_space(moment, used["nullspace_threshold"], "absolute")
        projector = stored[f"layer.{layer}.P"]
        assert basis.shape[1] == round(float(projector.trace()))
        assert relative_error(basis @ basis.T, projector) < 5e-3


@pytest.mark.parametrize(
    ("name", "record", "options"),
    [
        ("memit-history", "memit_history", []),
        ("alphaedit", "alphaedit", []),
        ("memit-history", "ote_prune_err", ["finish=prune", "error_feedback=true", "ridge=1"]),
    ],
)
@pytest.mark.usefixtures("stored_null_space")
def test_streams_by_the_command_line(
    golden, family: Path, tmp_path: Path, name: str, record: str, options: list[str]
) -> None:
    used = json.loads((family / f"{record}.json").read_text())["hparams"]
    facts = [
        {"subject": one.subject, "prompt": one.prompt, "target": one.target}
        for one in golden.requests
    ]
    (tmp_path / "facts.jsonl").write_text("\n".join(json.dumps(fact) for fact in facts))
    (tmp_path / "theirs.json").write_text(json.dumps(used))
    (tmp_path / "prefixes.json").write_text(json.dumps(golden.prefixes.groups))
    command = ["edit", "--model", golden.folder / "model", "--editor", name]
    command += ["--facts", tmp_path / "facts.jsonl", "--config", tmp_path / "theirs.json"]
    command += ["--context-prefixes", tmp_path / "prefixes.json", "--batch-size", "5"]
    command += ["--second-moments", golden.second_moments, "--no-cache"]
    for option in options:
        command += ["--set", f"{name}.{option}"]
    out = tmp_path / "edit.safetensors"
    result = CliRunner().invoke(build_cli(load_plugins()), [*map(str, command), "--out", str(out)])
    assert result.exit_code == 0, result.output
    edit = WeightEdit.load(out)
    assert edit.card.n_edits == 20
    vectors = load_file(family / f"{record}.safetensors")
    for layer in used["layers"]:
        expected = vectors[f"layer.{layer}.total_dW"]
        projection = golden.model.architecture.projection(layer, "mlp")
        found = make_dense(edit.updates[golden.model.architecture.weight_name(projection)])
        assert relative_error(found if found.shape == expected.shape else found.T, expected) < 1e-3


def test_errors_are_fed_back_through_a_stream(golden, family: Path, seen: Seen) -> None:
    # In the second batch of GPT-J an entry is so near to RECT's threshold (2e-6) that rounding says
    # on which side of it.
    n_batches = 4 if golden.folder.name == "gpt2" else 2
    editor = make(golden, family, "ote-rect", "ote_rect_err")
    check(golden, family, "ote_rect_err", seen, write_stream(editor, golden, [5] * n_batches))
