"""Single damages to files of the cache and of users: the right rows, or one line that says why not.

What is damaged in the cache is computed anew. Files of users that carry checksums, and what a run
has written, give what they gave before or are refused; of facts and settings, which anybody may
write, any text that can be understood is taken.
"""

import json
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from editbench.cli.main import build_cli
from editbench.plugins import PluginManager
from editbench.testing import tiny_model, tiny_tokenizer, toy_cases, toy_corpus

pytestmark = pytest.mark.thorough

N_QUICK = 36
N_ALL = 500

Damage = Callable[[random.Random, Path], None]


def truncate(chance: random.Random, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(max(1, len(data)))])


def zero_a_range(chance: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = chance.randrange(max(1, len(data)))
    stop = min(len(data), start + chance.choice([1, 8, 64, 4096]))
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)


def flip_a_bit(chance: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def flip_a_bit_near_the_beginning(chance: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[chance.randrange(min(200, len(data)))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def randomize_a_range(chance: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = chance.randrange(max(1, len(data)))
    stop = min(len(data), start + chance.choice([1, 8, 64, 4096]))
    data[start:stop] = chance.randbytes(stop - start)
    path.write_bytes(data)


def randomize(chance: random.Random, path: Path) -> None:
    path.write_bytes(chance.randbytes(len(path.read_bytes())))


def append(chance: random.Random, path: Path) -> None:
    with path.open("ab") as file:
        file.write(chance.randbytes(chance.choice([1, 9, 500])))


def delete(chance: random.Random, path: Path) -> None:
    path.unlink()


def exchange(chance: random.Random, path: Path) -> None:
    """Put there what another file of the folder, or else of the same ending nearby, holds."""
    others = [each for each in path.parent.iterdir() if each.is_file() and each != path]
    others += [each for each in path.parent.parent.glob(f"*/{path.name}") if each != path]
    if others:
        path.write_bytes(chance.choice(sorted(others)).read_bytes())


def put_a_folder_there(chance: random.Random, path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: list[Damage] = [
    *(truncate, zero_a_range, flip_a_bit, flip_a_bit_near_the_beginning, randomize_a_range),
    *(randomize, append, delete, exchange, put_a_folder_there),
]


@dataclass(frozen=True)
class Place:
    """What commands are given, and what they wrote from it.

    Attributes:
        folder: Where that lies.
        sources: Where the model and its ordinary text lie, which are left whole.
    """

    folder: Path
    sources: Path

    def invoke(self, *arguments: object) -> Result:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            cli = build_cli(PluginManager())
            result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def options(self, *, moments: Path | None = None) -> list[object]:
        settings = ["memit.critical_layers=[1,2]", "memit.n_steps=3", "memit.n_context_prefixes=1"]
        settings += ["memit.second_moment_tokens=800"]
        source = self.sources / "corpus.txt"
        given = ["--corpus", source] if moments is None else ["--second-moments", moments]
        return [
            *("--model", self.sources / "model", "--cache", self.folder / "cache", *given),
            *(part for setting in settings for part in ("--set", setting)),
            "--quiet",
        ]

    def run(self, out: str, *more: object, **inputs: Any) -> Result:
        return self.invoke(
            *("run", "--dataset", f"facts={self.folder / 'facts.jsonl'}", "--n-edits", 2),
            *("--editor", "memit", "--context-prefixes", self.folder / "prefixes.json"),
            *(*self.options(**inputs), "--out", self.folder / out, *more),
        )

    def edit(self, **inputs: Any) -> Result:
        return self.invoke(
            *("edit", "--facts", self.folder / "facts.jsonl", "--config", self.folder / "m.yaml"),
            *("--context-prefixes", self.folder / "prefixes.json", *self.options(**inputs)),
            *("--out", self.folder / "new.safetensors"),
        )

    def rows(self, out: str) -> dict[str, bytes]:
        folder = self.folder / out / "trials"
        return {path.parent.name: path.read_bytes() for path in folder.glob("*/rows.jsonl")}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Place:
    sources = tmp_path_factory.mktemp("sources")
    place = Place(tmp_path_factory.mktemp("template"), sources)
    folder = place.folder
    tiny_model().model.save_pretrained(sources / "model")
    tiny_tokenizer().save_pretrained(sources / "model")
    (sources / "corpus.txt").write_text("\n".join(list(toy_corpus().texts())[:60]))
    requests = [case.request for case in toy_cases(2)]
    keys = ("case_id", "subject", "prompt", "target")
    facts = [{key: getattr(request, key) for key in keys} for request in requests]
    (folder / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    (folder / "prefixes.json").write_text('[[""], ["And so it was. "]]')
    (folder / "m.yaml").write_text("clamp_factor: 0.75\nlearning_rate: 0.25\n")
    assert place.run("run").exit_code == 0
    (moments,) = folder.glob("cache/second_moments/*.safetensors")
    shutil.copy(moments, folder / "moments.safetensors")
    (folder / "npz").mkdir()
    for name, moment in load_file(moments).items():
        layer = name.rpartition(".")[2]
        np.savez(
            folder / "npz" / f"transformer.h.{layer}.mlp.c_proj_float32_mom2_800.npz",
            **{"mom2.mom2": 800 * moment, "mom2.count": 800},
        )
    assert place.edit().exit_code == 0
    (folder / "new.safetensors").rename(folder / "edit.safetensors")
    applied = place.invoke(*_apply(place), "--out", folder / "applied")
    assert applied.exit_code == 0, applied.output
    return place


def _apply(place: Place) -> list[object]:
    edit = place.folder / "edit.safetensors"
    return ["apply", "--model", place.sources / "model", "--edit", edit]


def list_files(place: Place, *patterns: str) -> list[Path]:
    found = [path for pattern in patterns for path in place.folder.glob(pattern)]
    return sorted(path for path in found if path.is_file() and path.suffix != ".lock")


def is_refused(result: Result) -> bool:
    """Whether a command ended with 2 and one line; any other end but a good one fails the test."""
    if result.exit_code == 0:
        return False
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    return True


def check_cache(place: Place, clean: Place) -> None:
    result = place.run("new")
    assert result.exit_code == 0, result.output
    assert place.rows("new") == clean.rows("run")


def check_report(place: Place, clean: Place) -> None:
    def report(of: Place) -> Result:
        return of.invoke("report", of.folder / "run", "--format", "json")

    if not is_refused(result := report(place)):
        assert json.loads(result.stdout) == json.loads(report(clean).stdout)


def check_resume(place: Place, clean: Place) -> None:
    if not is_refused(place.run("run", "--resume")):
        assert place.rows("run") == clean.rows("run")


def check_moments(place: Place, clean: Place) -> None:
    if not is_refused(place.run("new", moments=place.folder / "moments.safetensors")):
        rows, expected = place.rows("new"), clean.rows("run")
        assert strip_trial(rows) == strip_trial(expected)


def check_npz(place: Place, clean: Place) -> None:
    if not is_refused(place.run("new", moments=place.folder / "npz")):
        assert place.rows("new")


def check_edit(place: Place, clean: Place) -> None:
    if not is_refused(place.invoke(*_apply(place), "--out", place.folder / "new")):
        name = "model.safetensors"
        written = (place.folder / "new" / name).read_bytes()
        assert written == (clean.folder / "applied" / name).read_bytes()


def check_inputs(place: Place, clean: Place) -> None:
    is_refused(place.edit())


def strip_trial(rows: dict[str, bytes]) -> list[list[dict[str, Any]]]:
    read = [[json.loads(line) for line in each.splitlines()] for each in rows.values()]
    return [[{**row, "trial": None} for row in each] for each in read]


CHECKS: list[tuple[tuple[str, ...], Callable[[Place, Place], None]]] = [
    (("cache/**/*",), check_cache),
    (("cache/**/*",), check_cache),
    (("run/run.json", "run/trials/*/*"), check_report),
    (("run/run.json", "run/trials/*/*"), check_resume),
    (("moments.safetensors",), check_moments),
    (("npz/*.npz",), check_npz),
    (("edit.safetensors",), check_edit),
    (("facts.jsonl", "prefixes.json", "m.yaml"), check_inputs),
]


@pytest.mark.parametrize(
    "number",
    [
        *range(N_QUICK),
        *(pytest.param(number, marks=pytest.mark.slow) for number in range(N_QUICK, N_ALL)),
    ],
)
def test_a_damaged_file_ends_in_the_right_rows_or_in_one_line(
    template: Place, tmp_path: Path, number: int
) -> None:
    chance = random.Random(number)
    patterns, check = CHECKS[number % len(CHECKS)]
    place = Place(tmp_path / "place", template.sources)
    shutil.copytree(template.folder, place.folder)
    path = chance.choice(list_files(place, *patterns))
    chance.choice(DAMAGES)(chance, path)
    check(place, template)
