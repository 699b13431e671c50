import json
from dataclasses import dataclass

import pytest
from click.testing import CliRunner

from editbench.cli.main import build_cli
from editbench.plugins import PluginManager, hookimpl


@dataclass
class InMemoryPlugin:
    """Stands in for an entry point whose plugin is an object of the test."""

    name: str
    plugin: object
    dist: object = None

    def load(self):
        return self.plugin


@pytest.fixture
def make_plugin():
    return InMemoryPlugin


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Runs the command line in this process, in an empty folder; a defect is raised."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDITBENCH_CACHE", str(tmp_path / "cache"))

    def call(*arguments, plugins=()):
        cli = build_cli(PluginManager(plugins))
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def refuses(invoke, tmp_path):
    """Asserts that a command is refused: exit code 2, one line on stderr, nothing written."""

    def check(*arguments, says, plugins=()):
        before = sorted(tmp_path.rglob("*"))
        result = invoke(*arguments, plugins=plugins)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        for part in [says] if isinstance(says, str) else says:
            assert part in result.stderr
        assert sorted(tmp_path.rglob("*")) == before
        return result.stderr

    return check


class Nudging:
    """A plugin with the editor 'nudge', which is quick and moves one weight at random."""

    @hookimpl
    def editbench_register_editors(self):
        import torch

        from editbench.editors.base import Editor, EditorConfig
        from editbench.edits.weight_edit import WeightEdit

        class NudgeConfig(EditorConfig):
            size: float = 0.1
            layer: int = 1

        class Nudge(Editor):
            """Moves one weight at random."""

            name = "nudge"
            config_type = NudgeConfig

            def edit(self, model, requests, resources):
                name = f"transformer.h.{self.config.layer}.mlp.c_proj.weight"
                shape = model.model.get_parameter(name).T.shape
                chance = torch.Generator().manual_seed(resources.seed)
                update = self.config.size * torch.randn(shape, generator=chance)
                return WeightEdit.build(
                    model,
                    editor=self.name,
                    config=self.config,
                    requests=requests,
                    updates={name: update},
                )

        return [Nudge]


@pytest.fixture
def nudging():
    return InMemoryPlugin("nudging", Nudging())


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny model with its tokenizer, saved as an ordinary Hugging Face folder."""
    from editbench.testing import tiny_model, tiny_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory):
    """Another one, with other weights and wider keys."""
    from editbench.testing import tiny_model, tiny_tokenizer

    folder = tmp_path_factory.mktemp("models") / "other"
    tiny_model(seed=1, d_model=32).model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def facts_file(tmp_path_factory):
    """Six facts with all their probes, as JSON Lines."""
    from editbench.testing import toy_cases

    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    path.write_text("".join(json.dumps(_describe(case)) + "\n" for case in toy_cases(6)))
    return path


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory):
    """A few hundred sentences."""
    from editbench.testing import toy_corpus

    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(toy_corpus().texts()))
    return path


@pytest.fixture(scope="session")
def moments_file(tmp_path_factory, model_folder, corpus_file):
    """Second moments of the tiny model's layers 1 and 2, as `editbench stats` writes them."""
    path = tmp_path_factory.mktemp("moments") / "moments.safetensors"
    arguments = ["stats", "--model", model_folder, "--corpus", corpus_file, "--layers", "1,2"]
    arguments += ["--n-tokens", 2000, "--out", path, "--quiet"]
    result = CliRunner().invoke(build_cli(PluginManager()), [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="session")
def memit_options(moments_file):
    """What makes MEMIT quick on the tiny model."""
    options = ["--second-moments", moments_file]
    for setting in ("critical_layers=[1,2]", "n_steps=3", "n_context_prefixes=1"):
        options += ["--set", f"memit.{setting}"]
    return options


def _describe(case):
    request = case.request
    by_kind = {"paraphrase": [], "neighborhood": []}
    for probe in case.probes:
        if probe.kind in by_kind:
            by_kind[probe.kind].append(probe)
    return {
        "case_id": request.case_id,
        "subject": request.subject,
        "prompt": request.prompt,
        "target": request.target,
        "target_true": case.target_true,
        "relation": request.relation,
        "paraphrases": [probe.prompt for probe in by_kind["paraphrase"]],
        "neighbors": [
            {"prompt": probe.prompt, "target": probe.expected} for probe in by_kind["neighborhood"]
        ],
    }
