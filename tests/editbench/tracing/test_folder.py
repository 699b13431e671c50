"""The trace folder: nothing half-written, resumed where it was, refused where it is not one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from editbench.errors import ConfigError, TraceError
from editbench.models.editable import EditableModel
from editbench.tracing.effects import average_effects
from editbench.tracing.facts import KnownFact
from editbench.tracing.figures import write_figures
from editbench.tracing.folder import TraceStore, read_manifest, read_traces
from editbench.tracing.manifest import Trace, TraceManifest
from editbench.tracing.prompts import KnownPrompts
from editbench.tracing.study import TraceOptions, prepare_trace, trace_into
from editbench.tracing.tracer import Tracer

Plan = Callable[..., tuple[TraceManifest, KnownPrompts]]
OPTIONS = TraceOptions(n_samples=2)


def say_nothing(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def plan(tiny: EditableModel, tiny_facts: list[KnownFact]) -> Plan:
    def make(
        options: TraceOptions = OPTIONS, limit: int | None = None
    ) -> tuple[TraceManifest, KnownPrompts]:
        return prepare_trace(
            tiny,
            tiny_facts,
            options,
            source="toy",
            limit=limit,
            provenance={"command": ["x"]},
            on_progress=say_nothing,
        )

    return make


@pytest.fixture
def traced(tiny: EditableModel, plan: Plan, tmp_path: Path) -> tuple[Path, Trace]:
    manifest, known = plan()
    folder = tmp_path / "trace"
    return folder, trace_into(folder, tiny, manifest, known, resume=False, on_progress=say_nothing)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("prompts/*")}


def test_what_is_planned(plan: Plan) -> None:
    manifest, known = plan()
    assert manifest.facts["n_facts"] == manifest.facts["n_asked"] == 8
    assert manifest.facts["n_skipped"] == manifest.facts["n_prompts"] == len(known.prompts) == 4
    assert manifest.model["n_layers"] == 4
    assert manifest.settings.noise_level == pytest.approx(3 * (manifest.spread or 0))
    assert manifest.settings.window == 2  # of four layers
    assert manifest.settings.noise_source == "prompt"
    assert manifest.provenance["command"] == ["x"]
    fixed, _ = plan(TraceOptions(noise="0.25", window=3))
    assert (fixed.settings.noise_level, fixed.spread, fixed.settings.window) == (0.25, None, 3)
    preset, _ = plan(TraceOptions(as_reference=True), limit=1)
    assert (preset.settings.noise_source, preset.settings.window) == ("reference", 10)
    with pytest.raises(ConfigError, match="--noise"):
        plan(TraceOptions(noise="much"))


def test_what_is_written_is_read_back(traced: tuple[Path, Trace], tiny: EditableModel) -> None:
    folder, trace = traced
    assert read_manifest(folder) == trace.manifest
    assert trace.replay_failure is None
    for stored in read_traces(folder):
        again = Tracer(tiny, trace.manifest.settings).trace(stored.prompt)
        assert again.prompt == stored.prompt
        assert (again.high_score, again.low_score) == (stored.high_score, stored.low_score)
        for kind, scores in again.scores.items():
            np.testing.assert_allclose(stored.scores[kind], scores, rtol=1e-5)


def test_a_resumed_trace_skips_what_is_done(
    traced: tuple[Path, Trace], tiny: EditableModel, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = traced
    whole = contents(folder)
    (folder / "prompts" / "00001.safetensors").unlink()
    leftover = folder / "prompts" / ".unfinished-00001.safetensors"
    leftover.write_bytes(b"half")
    traced_again: list[str] = []
    trace = Tracer.trace

    def count(self: Tracer, prompt: Any, **options: Any) -> Any:
        traced_again.append(prompt.fact.fact_id)
        return trace(self, prompt, **options)

    monkeypatch.setattr(Tracer, "trace", count)
    manifest, known = plan()
    trace_into(folder, tiny, manifest, known, resume=True, on_progress=say_nothing)
    assert traced_again == [known.prompts[1].fact.fact_id]
    assert contents(folder) == whole
    assert not leftover.exists()


def test_another_trace_is_not_resumed(
    traced: tuple[Path, Trace], tiny: EditableModel, plan: Plan
) -> None:
    folder, _ = traced
    manifest, known = plan(TraceOptions(n_samples=3, noise="0.5"), limit=2)
    with pytest.raises(TraceError, match="of something else") as refusal:
        trace_into(folder, tiny, manifest, known, resume=True, on_progress=say_nothing)
    assert "settings.n_samples: got 3; expected 2" in str(refusal.value)
    assert "facts.n_prompts: got 2; expected 4" in str(refusal.value)
    assert "created" not in str(refusal.value)


def test_folders_that_are_refused(traced: tuple[Path, Trace], plan: Plan, tmp_path: Path) -> None:
    folder, _ = traced
    manifest, _ = plan()

    def refuses(place: Path, says: str, *, resume: bool = False) -> None:
        with (
            pytest.raises(TraceError, match=says),
            TraceStore.open(place, manifest, resume=resume),
        ):
            pass

    refuses(folder, "holds a trace already")
    (tmp_path / "file").write_text("")
    refuses(tmp_path / "file", "not a folder")
    refuses(tmp_path / "file" / "trace", "create the trace folder: cannot write")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    refuses(tmp_path / "other", "something that is no trace.*thesis.tex", resume=True)
    with FileLock(folder / ".lock"):
        refuses(folder, "another process", resume=True)


def test_damaged_files_are_named(traced: tuple[Path, Trace], tmp_path: Path) -> None:
    folder, _ = traced
    with pytest.raises(TraceError, match=r"holds no trace.*trace\.json"):
        read_manifest(tmp_path)
    path = folder / "prompts" / "00002.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(TraceError, match=r"00002.*Delete it, and resume"):
        read_traces(folder)
    (folder / "trace.json").write_text('{"format": 2}')
    with pytest.raises(TraceError, match=r"cannot read.*trace\.json"):
        read_manifest(folder)


FULL_DISK = """
import resource, sys
from pathlib import Path
from editbench.errors import TraceError
from editbench.tracing.folder import TraceStore, write_file
from editbench.tracing.manifest import TraceManifest
source, folder = Path(sys.argv[1]), Path(sys.argv[2])
manifest = TraceManifest.model_validate_json(source.read_bytes())
try:
    with TraceStore.open(folder, manifest, resume=False):
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        write_file(folder / "prompts" / "00000.safetensors", b"x" * 1000)
except TraceError as error:
    sys.exit(0 if "cannot write" in str(error) and "File too large" in str(error) else str(error))
sys.exit("was written")
"""


def test_a_full_disk_is_one_error_and_nothing_is_half_written(plan: Plan, tmp_path: Path) -> None:
    """A limit on the size of files, in a process of its own, stands in for the full disk."""
    manifest, _ = plan()
    source, folder = tmp_path / "manifest.json", tmp_path / "trace"
    source.write_text(manifest.model_dump_json())
    subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(source), str(folder)], check=True, timeout=120
    )
    assert list((folder / "prompts").iterdir()) == []
    with TraceStore.open(folder, manifest, resume=True) as store:
        assert not store.is_traced(0)


def test_trace_json_is_plain_json(traced: tuple[Path, Trace]) -> None:
    content = json.loads((traced[0] / "trace.json").read_text())
    assert content["format"] == 1
    assert content["settings"]["kinds"] == ["hidden", "mlp", "attention"]


def test_figures(traced: tuple[Path, Trace]) -> None:
    folder, trace = traced
    effects = average_effects(trace.prompts)
    drawn = write_figures(folder, trace, effects, (1, 2), n_prompts=1)
    names = ["prompt-00000", "average", "profiles", "severed"]
    expected = [f"{name}{suffix}" for name in names for suffix in (".png", ".svg")]
    assert [path.name for path in drawn] == expected
    before = {path: path.read_bytes() for path in drawn}
    texts = {path.stem: path.read_text() for path in drawn if path.suffix == ".svg"}
    assert before[drawn[0]].startswith(b"\x89PNG")
    assert "suggested range 1 to 2" in texts["severed"]
    assert all("n = 4 prompts" in text for name, text in texts.items() if name != "prompt-00000")
    for text in trace.prompts[0].prompt.texts:
        assert text.strip() in texts["prompt-00000"]
    write_figures(folder, trace, effects, (1, 2), n_prompts=0)
    assert before == {path: path.read_bytes() for path in drawn}
