"""The documentation says what the code does: fields, names, commands, snippets and bounds."""

import ast
import dataclasses
import importlib
import importlib.util
import json
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from transformers import GPTJConfig, GPTJForCausalLM

import editbench
import memit_core
from editbench.atlas import default_world
from editbench.cli import group
from editbench.cli.main import build_cli
from editbench.cli.overrides import read_overrides
from editbench.datasets import read_facts
from editbench.datasets.facts import COLUMNS, FIELDS
from editbench.editors import alphaedit, memit
from editbench.editors.alphaedit import AlphaEditConfig
from editbench.editors.base import EditorConfig
from editbench.editors.closed_form.config import derive_closed_form_defaults
from editbench.editors.emmet import EmmetConfig
from editbench.editors.finetune import FineTuneConfig, LocFineTuneConfig
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.mend.editor import MendConfig
from editbench.editors.mend.training_config import MendTraining
from editbench.editors.prompting import RetrievalConfig
from editbench.editors.rome import RomeConfig
from editbench.editors.ultraedit import UltraEditConfig
from editbench.edits.card import EditCard
from editbench.plugins import PluginManager, load_plugins
from editbench.requests import EditRequest
from editbench.results.comparison import Difference
from editbench.results.figures.drawing import FIGURES
from editbench.results.figures.selection import Point
from editbench.results.manifest import MetricDescription, RunManifest, TrialDescription
from editbench.results.report import SummaryLine
from editbench.results.row import Row
from editbench.results.store import TrialRecord
from editbench.testing import tiny_tokenizer, toy_corpus
from editbench.tracing.effects import EffectLine
from editbench.tracing.manifest import TraceManifest
from editbench.tracing.settings import TraceSettings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLE = DOCS / "examples/editbench-example-plugin/src"
READMES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md"))]
PAGES = sorted(page for page in DOCS.rglob("*.md") if not {"_build", "examples"} & set(page.parts))
PLUGINS = PluginManager()
CLI = build_cli(PLUGINS)


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """What stands between a heading and the next one of any level."""
    found = re.search(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", read(page), flags=re.DOTALL | re.MULTILINE
    )
    assert found, f"{page} has no section '{heading}'"
    return found[1]


def tables(text: str) -> list[list[list[str]]]:
    """Every table as rows of cells, without header and rule."""
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            if not inside:
                found.append([])
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        inside = line.startswith("|")
    return [rows[2:] for rows in found]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def first_column(rows: list[list[str]]) -> list[str]:
    return [code for row in rows for code in codes(row[0])]


def sealed(rows: list[list[str]]) -> list[str]:
    """The first column of a file that carries a checksum of itself, without that."""
    columns = first_column(rows)
    columns.remove("checksum")
    return columns


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M
    )


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


class TestConfiguration:
    ROWS = tables(section("reference/configuration.md", "MEMIT"))[0]

    def test_fields_stand_in_order(self) -> None:
        assert first_column(self.ROWS) == list(MemitConfig.model_fields)

    @pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
    def test_defaults(self, row: list[str]) -> None:
        field = MemitConfig.model_fields[codes(row[0])[0]]
        written = row[3]
        if field.is_required():
            assert written == "required"
        else:
            assert json.loads(written.strip("`")) == field.default

    @pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
    def test_names_of_the_reference(self, row: list[str]) -> None:
        description = MemitConfig.model_fields[codes(row[0])[0]].description or ""
        stated = re.search(r"\((\w+_\w+|layers)\)$", description)
        if stated:
            assert codes(row[2]) == [stated[1]]

    @pytest.mark.parametrize(
        ("title", "config"),
        [
            ("ROME", RomeConfig),
            ("FT-W", FineTuneConfig),
            ("UltraEdit", UltraEditConfig),
            ("Editors of prompts", RetrievalConfig),
            ("MEND", MendConfig),
            ("Training of MEND", MendTraining),
        ],
    )
    def test_fields_of_the_other_editors(self, title: str, config: type[EditorConfig]) -> None:
        (rows,) = tables(section("reference/configuration.md", title))
        expected = [
            [
                f"`{name}`",
                "required" if field.is_required() else f"`{json.dumps(field.default)}`",
                field.description,
            ]
            for name, field in config.model_fields.items()
        ]
        assert rows == expected

    @pytest.mark.parametrize(
        ("title", "config", "base"),
        [
            ("EMMET", EmmetConfig, MemitConfig),
            ("AlphaEdit", AlphaEditConfig, MemitConfig),
            ("LocFT", LocFineTuneConfig, FineTuneConfig),
        ],
    )
    def test_fields_that_differ(
        self, title: str, config: type[EditorConfig], base: type[EditorConfig]
    ) -> None:
        (rows,) = tables(section("reference/configuration.md", title))
        expected = [
            [f"`{name}`", f"`{json.dumps(field.default)}`", field.description]
            for name, field in config.model_fields.items()
            if field.description != base.model_fields[name].description
            or field.default != base.model_fields[name].default
        ]
        assert rows == expected

    @pytest.mark.parametrize(
        ("title", "module", "base"),
        [
            ("Presets of MEMIT", memit, MemitConfig),
            ("Presets of AlphaEdit", alphaedit, AlphaEditConfig),
        ],
    )
    def test_what_presets_change(self, title: str, module: Any, base: Any) -> None:
        (rows,) = tables(section("reference/configuration.md", title))
        kinds = [
            kind for kind in load_plugins().editors().values() if kind.__module__ == module.__name__
        ]
        expected = [
            [f"`{kind.name}`", f"`{name}`", f"`{json.dumps(field.default)}`", field.description]
            for kind in kinds
            for name, field in kind.config_type.model_fields.items()
            if not field.is_required() and field.default != base.model_fields[name].default
        ]
        assert rows == expected

    def test_presets_by_name(self) -> None:
        (rows,) = tables(section("reference/configuration.md", "Presets by name"))
        expected = [
            [
                f"`{name}`",
                f"`{preset}`",
                ", ".join(f"`{field}: {json.dumps(value)}`" for field, value in values.items()),
            ]
            for name, kind in load_plugins().editors().items()
            for preset, values in kind.config_type.presets.items()
        ]
        assert rows == expected

    def test_example(self) -> None:
        (example,) = blocks(DOCS / "reference/configuration.md", "yaml")
        assert set(re.findall(r"^(\w+):", example, flags=re.M)) <= set(MemitConfig.model_fields)

    def test_derived_defaults(self) -> None:
        text = section("how-to/edit-your-own-model.md", 'What "derived defaults" means')
        assert set(first_column(tables(text)[0])) == set(derive_closed_form_defaults(28, 4096)) - {
            "learning_rate_unit"
        }


def public_classes() -> dict[str, list[str]]:
    """Every public class by name, with the modules that define one of that name."""
    found: dict[str, list[str]] = {}
    for package in (editbench, memit_core):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            source = Path(importlib.util.find_spec(module.name).origin).read_text("utf-8")
            for node in ast.parse(source).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found.setdefault(node.name, []).append(module.name)
    return found


def look_up(path: str) -> object:
    """What a dotted name of the glossary stands for."""
    found: object = memit_core if path.startswith("memit_core.") else editbench
    name = found.__name__
    for part in path.removeprefix("memit_core.").split("."):
        name = f"{name}.{part}"
        if not hasattr(found, part):
            importlib.import_module(name)
        found = getattr(found, part)
    return found


class TestDesign:
    PAGE = "explanation/design.md"
    FOLDERS, QUESTIONS = tables(section(PAGE, "Map"))
    (WORDS,) = tables(section(PAGE, "Words"))
    SOURCE = Path(editbench.__file__).parent

    def test_the_map_has_every_folder(self) -> None:
        there = {path.parent.relative_to(self.SOURCE) for path in self.SOURCE.rglob("__init__.py")}
        assert sorted(first_column(self.FOLDERS)) == sorted(map(str, there - {Path()}))

    def test_questions_are_answered_by_one_file_each(self) -> None:
        files = [codes(row[1]) for row in self.QUESTIONS]
        assert len(files) == 4
        assert all(len(names) == 1 and (self.SOURCE / names[0]).is_file() for names in files)

    def test_no_class_is_called_like_another(self) -> None:
        assert {name: at for name, at in public_classes().items() if len(at) > 1} == {}

    def test_words_stand_once(self) -> None:
        words = [row[0] for row in self.WORDS]
        assert len(set(words)) == len(words)

    @pytest.mark.parametrize("row", WORDS, ids=lambda row: row[0])
    def test_a_word_stands_for_what_is_in_the_code(self, row: list[str]) -> None:
        assert codes(row[2])
        for path in codes(row[2]):
            assert look_up(path) is not None

    def test_a_class_called_by_a_word_is_of_that_kind(self) -> None:
        """Those with a name of their own, such as editors and datasets, are called after papers."""
        listed = {path.rpartition(".")[2] for row in self.WORDS for path in codes(row[2])}
        words = {row[0].split()[-1].removesuffix("s") for row in self.WORDS}
        missing = [
            f"{modules[0]}.{name}"
            for name, modules in public_classes().items()
            if re.findall("[A-Z][a-z]*", name)[-1].lower() in words and name not in listed
        ]
        assert [
            path
            for path in missing
            if "name" not in vars(look_up(path.removeprefix("editbench.")))
            and not path.endswith("Config")
        ] == []


class TestMetrics:
    def test_rows_scores_and_datasets(self) -> None:
        documented = {
            codes(name)[0]: (codes(rows), codes(score), set(codes(datasets)))
            for name, rows, score, datasets in tables(read("reference/metrics.md"))[0]
        }
        assert documented == {
            name: (
                list(metric.produces),
                list(metric.aggregates),
                {
                    dataset
                    for dataset, kind in PLUGINS.datasets().items()
                    if name in kind.default_metrics
                },
            )
            for name, metric in PLUGINS.metrics().items()
        }


class TestModels:
    def test_short_names(self) -> None:
        names = first_column(tables(section("reference/models.md", "Short names"))[0])
        assert set(names) == set(PLUGINS.models())

    def test_hyperparameters(self) -> None:
        text = section("reference/models.md", "Their hyperparameters")
        header = next(line for line in text.splitlines() if line.startswith("|"))
        names = codes(header)
        configs = [
            MemitConfig.parse(PLUGINS.models()[name].defaults["memit"], name).model_dump(
                mode="json"
            )
            for name in names
        ]
        for row in tables(text)[0]:
            (field,) = codes(row[0])
            written = [json.loads(cell.strip("`")) for cell in row[1:]]
            assert written == [config[field] for config in configs], field
        stated = {field for name in names for field in PLUGINS.models()[name].defaults["memit"]}
        assert stated <= set(first_column(tables(text)[0]))

    def test_families(self) -> None:
        """As many as the tests prove, no more and no fewer."""
        source = (ROOT / "tests/editbench/conftest.py").read_text(encoding="utf-8")
        (families,) = (
            node.value
            for node in ast.parse(source).body
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "FAMILIES"
        )
        assert isinstance(families, ast.Dict)
        rows = tables(section("reference/models.md", "How the parts are found"))[0]
        documented = [code for row in rows for code in codes(row[1])]
        assert documented == [ast.literal_eval(key) for key in families.keys if key is not None]


class TestDatasets:
    def test_names(self) -> None:
        rows, _ = tables(read("reference/datasets.md"))
        assert first_column(rows) == list(PLUGINS.datasets())

    @pytest.mark.parametrize("name", list(PLUGINS.datasets()))
    def test_addresses(self, name: str) -> None:
        rows, _ = tables(read("reference/datasets.md"))
        (row,) = (row for row in rows if codes(row[0]) == [name])
        remote = getattr(PLUGINS.get_dataset(name), "remote", None)
        if remote is None:
            assert "embedded" in row[2] or "needs a path" in row[2]
            return
        *_, file = codes(row[2])
        assert remote.url.endswith(file)
        assert row[3] == ("the first download" if remote.sha256 is None else "SHA-256")


class TestFileFormats:
    PAGE = "reference/file-formats.md"

    def test_facts(self) -> None:
        assert first_column(tables(section(self.PAGE, "Facts"))[0]) == list(FIELDS)
        assert len(COLUMNS) == 12
        assert "only the first twelve fields" in section(self.PAGE, "Facts")

    def test_card(self) -> None:
        card = tables(section(self.PAGE, "Edit file"))[-1]
        assert card.pop()[0] == "`checksums`, `checksum`"
        assert first_column(card) == list(EditCard.model_fields)

    def test_manifest(self) -> None:
        manifest, description = tables(section(self.PAGE, "run.json"))
        assert sealed(manifest) == list(RunManifest.model_fields)
        assert first_column(description) == list(TrialDescription.model_fields)
        (metrics,) = (row for row in manifest if row[0] == "`metrics`")
        assert codes(metrics[1]) == list(MetricDescription.model_fields)

    def test_rows(self) -> None:
        rows = tables(section(self.PAGE, "rows.jsonl"))[0]
        assert first_column(rows) == [field.name for field in dataclasses.fields(Row)]

    def test_trials(self) -> None:
        trial = tables(section(self.PAGE, "trial.json"))[0]
        assert sealed(trial) == list(TrialRecord.model_fields)

    def test_report(self) -> None:
        for heading, kind in (
            ("Report", SummaryLine),
            ("Comparison", Difference),
            ("Figures", Point),
        ):
            lines = tables(section(self.PAGE, heading))[0]
            assert first_column(lines) == [field.name for field in dataclasses.fields(kind)]

    def test_figures(self) -> None:
        rows = tables(section("how-to/compare-runs.md", "Draw figures"))[0]
        assert set(first_column(rows)) == set(FIGURES) - {"editors"}

    def test_traces(self) -> None:
        manifest = tables(section(self.PAGE, "trace.json"))[0]
        assert first_column(manifest) == list(TraceManifest.model_fields)
        (settings,) = (row for row in manifest if row[0] == "`settings`")
        stated = [code for code in codes(settings[1]) if code not in ("prompt", "reference")]
        assert stated == list(TraceSettings.model_fields)
        effects = tables(section(self.PAGE, "Effects"))[0]
        assert first_column(effects) == [field.name for field in dataclasses.fields(EffectLine)]

    @pytest.mark.parametrize(
        ("page", "heading"),
        [(PAGE, "Exit codes"), ("how-to/run-a-grid.md", "When it stops")],
    )
    def test_exit_codes(self, page: str, heading: str) -> None:
        rows = tables(section(page, heading))[0]
        stated = [int(row[0]) for row in rows]
        assert stated == [0, group.SOME_FAILED, group.BAD_INPUT, group.INTERRUPTED]


def commands() -> Iterator[tuple[str, str]]:
    """Every command line of ours, behind a prompt or at the beginning of a line."""
    for page in [*PAGES, *READMES, *sorted(DOCS.glob("examples/*/README.md"))]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for language, block in re.findall(r"^```([^\n]*)\n(.*?)^```", text, flags=re.DOTALL | re.M):
            is_shell = language in ("", "console", "bash", "sh")
            for line in block.splitlines() if is_shell else ():
                if found := re.match(r"(?:\$ )?(?:\S*/)?(editbench [a-z-].*)", line):
                    yield named(page), found[1]


@pytest.mark.parametrize(("page", "line"), list(commands()))
def test_commands_are_well_formed(page: str, line: str) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
    command = CLI.commands[name]
    with (
        click.Context(CLI, obj=PLUGINS) as parent,
        command.make_context(name, arguments, parent=parent) as context,
    ):
        chosen = [s for s in context.params.get("set_options") or () if s.startswith("memit.")]
        read_overrides({"memit": Memit}, [], chosen)


NOT_RUN = {("docs/how-to/run-on-many-machines.md", "needs a Ray cluster with a GPU")}
"""All snippets that a page says are not run, and why."""


def snippets(page: Path) -> list[tuple[str, str]]:
    """Each snippet, and why it is not run; empty if it is."""
    text = page.read_text(encoding="utf-8")
    form = r"^(?:<!-- not run: ([^\n]+) -->\n)?```python\n(.*?)^```"
    found = re.findall(form, text, flags=re.DOTALL | re.M)
    assert len(found) == len(re.findall("^ *```python", text, flags=re.M))
    return [(code, reason) for reason, code in found]


WITH_SNIPPETS = [page for page in [*PAGES, *READMES] if snippets(page)]


def test_what_is_not_run_says_why() -> None:
    marked = [
        (named(page), reason) for page in WITH_SNIPPETS for _, reason in snippets(page) if reason
    ]
    assert set(marked) == NOT_RUN
    assert len(marked) == len(NOT_RUN)


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=named)
def test_imports_of_snippets_resolve(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    ours = {"editbench", "memit_core", "editbench_example_plugin"}
    for code, _ in snippets(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ours:
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def call(*arguments: str) -> None:
    result = CliRunner().invoke(CLI, arguments)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where snippets run: with the files that their pages have made or ask for by then."""
    folder = tmp_path_factory.mktemp("workshop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("EDITBENCH_CACHE", str(folder / "cache"))
        tokenizer = tiny_tokenizer()
        sizes = {"n_embd": 24, "n_layer": 4, "n_head": 2, "rotary_dim": 4, "n_positions": 128}
        tokens = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
        config = GPTJConfig(**sizes, **tokens, tie_word_embeddings=False)
        GPTJForCausalLM(config).save_pretrained("my-model")
        tokenizer.save_pretrained("my-model")
        Path("wiki.txt").write_text("\n".join(toy_corpus().texts()), encoding="utf-8")
        shown_facts("tutorial/first-edit.md", folder)
        made = ("--facts", "facts.jsonl", "--out", "edit.safetensors", "--quiet")
        call("edit", "--model", "atlas", *made)
        call("apply", "--model", "atlas", "--edit", "edit.safetensors", "--out", "edited-atlas")
        settings = ("critical_layers=[1]", "n_steps=2", "second_moment_tokens=1000")
        settings += ("preservation_weight=10", "preservation_weight=20", "n_context_prefixes=0")
        options = [part for setting in settings for part in ("--set", f"memit.{setting}")]
        options += ["--model", "my-model", "--dataset", "facts=facts.jsonl", "--n-edits", "2"]
        call("run", *options, "--metrics", "accuracy", "--out", "runs/lambda", "--quiet")
    return folder


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=named)
def test_snippets_run(page: Path, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    names: dict[str, Any] = {"__name__": "snippet"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for code, reason in snippets(page):
            if not reason:
                exec(compile(code, str(page), "exec"), names)
    for name, test in names.items():
        if name.startswith("test_"):
            test()


def test_the_edited_model_of_the_tutorial_says_what_the_page_says(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workshop)
    code, _ = snippets(DOCS / "tutorial/first-edit.md")[0]
    exec(compile(code, "first-edit.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert ["tailor" in line for line in said] == [True, True, False]
    assert "painter" in said[2]


def shown_facts(page: str, folder: Path) -> list[EditRequest]:
    (block,) = re.findall(r":class: facts\n\n(.*?)```", read(page), flags=re.DOTALL)
    path = folder / "facts.jsonl"
    path.write_text(block, encoding="utf-8")
    return [case.request for case in read_facts(path)]


def test_facts_can_be_read(tmp_path: Path) -> None:
    assert len(shown_facts("how-to/edit-your-own-model.md", tmp_path)) == 1


def test_the_tutorial_contradicts_what_atlas_knows(tmp_path: Path) -> None:
    requests = shown_facts("tutorial/first-edit.md", tmp_path)
    known = default_world().facts_of
    for request in requests:
        assert request.target not in {fact.object for fact in known[request.subject]}
    _, _, neighbor = re.findall(r'^    "(.*) (?:works|earns)', read("tutorial/first-edit.md"), re.M)
    assert "painter" in {fact.object for fact in known[neighbor]}


def test_bounds_of_fidelity_are_asserted() -> None:
    rows = tables(section("explanation/fidelity.md", "How it is checked"))[0]
    path = ""
    assert len(rows) > 5
    for quantity, bound, test in rows:
        path = path if test == "same" else codes(test)[0]
        source = (ROOT / path).read_text(encoding="utf-8")
        expected = f"< {bound}" if bound.startswith("1e") else ".equal("
        if bound == "equal":
            expected = "n_steps.tolist() =="
        assert expected in source, f"{quantity}: {path} asserts no {expected}"


def test_paths_in_explanations_exist() -> None:
    for page in ("method", "suffix-replay", "causal-tracing"):
        for line in read(f"explanation/{page}.md").splitlines():
            if line.lstrip().startswith("→"):
                for path in codes(line):
                    name = Path(path).name
                    assert list(ROOT.glob(f"packages/*/src/**/{name}")), f"{page}: {path}"


@pytest.mark.parametrize("page", READMES, ids=named)
def test_links_of_readmes_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
