"""Wrong input: one clear line on stderr, exit code 2, nothing written."""

import errno
import json
import resource
import shutil
from contextlib import contextmanager

import pytest
from transformers import AutoTokenizer

from editbench.errors import EditbenchError
from editbench.plugins import PluginManager, hookimpl

ZSRE = """[
{"subject": "Bo", "src": "Who wrote Hamlet?", "answers": ["x"], "rephrase": "r", "loc": "l",
 "loc_ans": "a"}
]"""


@pytest.fixture
def run_options(model_folder, facts_file):
    return ["run", "--model", model_folder, "--dataset", f"facts={facts_file}", "--out", "here"]


@pytest.fixture
def edit_options(model_folder, facts_file, memit_options):
    options = ["edit", "--model", model_folder, "--facts", facts_file, "--out", "e.safetensors"]
    return [*options, *memit_options]


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--editor", "memt", "unknown editor 'memt'. Did you mean 'memit'? Available: "),
        ("--dataset", "counterfct", "unknown dataset 'counterfct'. Did you mean 'counterfact'?"),
        ("--metrics", "succes", "unknown metric 'succes'. Did you mean 'success'?"),
        ("--metrics", "success,", "unknown metric ''"),
        ("--model", "./no-such-folder", "model './no-such-folder': no such folder"),
        ("--dataset", "facts", "dataset 'facts': needs a file"),
        ("--dataset", "atlas=x.json", "dataset 'atlas': it is embedded and reads no file"),
        ("--n-edits", "0", "--n-edits"),
        ("--n-edits", "7", "got n_edits 7; expected at most 6"),
        ("--seed", "x", "Invalid value for '--seed': 'x' is not a valid integer"),
        ("--on-conflict", "ignore", "'ignore' is not one of 'error', 'drop-all', 'keep-first'"),
        ("--set", "memit.n_step=3", "unknown field 'n_step'. Did you mean 'n_steps'?"),
        ("--set", "memit.n_steps=-1", "--set: field 'n_steps'"),
        ("--config", "missing.yaml", "cannot read the file, got 'missing.yaml'"),
        ("--second-moments", "missing.safetensors", "'missing.safetensors'"),
        ("--context-prefixes", "missing.json", "missing.json"),
        ("--corpus", "missing.txt", "missing.txt"),
        ("--corpus", "hf:", "malformed name, got 'hf:'"),
        ("--device", "abacus", "'abacus'"),
        ("--bogus", "1", "No such option"),
    ],
)
def test_option_of_run(refuses, run_options, option, value, says):
    refuses(*run_options, option, value, says=says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bogus"], "No such option"),
        (["bogus"], "No such command 'bogus'"),
        (["edit"], "Missing option"),
        (["apply", "--model", "x", "--edit", "missing", "--out", "y"], "cannot read the file"),
        (["report", "missing"], "the folder holds no run, got 'missing'"),
        (["check", "memt"], "Did you mean 'memit'?"),
        (["list", "editor"], "'editor' is not one of"),
        (["run", "--resume"], "--resume: which run?"),
    ],
)
def test_arguments(refuses, arguments, says):
    refuses(*arguments, says=says)


@pytest.mark.parametrize(
    ("dataset", "content", "says"),
    [
        ("facts", None, ["data.json", "No such file"]),
        ("facts", "", ["data.json", "is empty"]),
        ("facts", '{"subject": "Ana", "prompt": "{} is", "target"', ["data.json:1", "ends in"]),
        ("facts", '\n{"subject": "Ana", "prompt": "{} is"}\n', ["data.json:2", "'target'"]),
        ("facts", '{"subject": "Ana", "prompt": "Who?", "target": "x"}', ["data.json:1", "prompt"]),
        ("facts", '{"subject": "", "prompt": "{} is", "target": "x"}', ["data.json:1", "subject"]),
        ("facts", '{"subject": 1, "prompt": "{} is", "target": "x"}', ["data.json:1", "subject"]),
        ("facts", b"\xff\xfe\x00", ["data.json", "UTF-8"]),
        ("counterfact", '[{"case_id": 0, "requested_rewr', ["data.json"]),
        ("counterfact", "[]", ["data.json", "holds no records"]),
        ("counterfact", '{"case_id": 0}', ["data.json"]),
        ("counterfact", '[\n{"case_id": 0}]', ["data.json:2", "requested_rewrite"]),
        ("zsre", ZSRE, "data.json:2: field 'subject' does not occur in the prompt: 'Who wrote"),
    ],
)  # fmt: skip
def test_data_file(refuses, model_folder, tmp_path, dataset, content, says):
    path = tmp_path / "data.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    source = f"{dataset}={path}"
    refuses("run", "--model", model_folder, "--dataset", source, "--out", "here", says=says)
    if dataset == "facts":
        options = ["--model", model_folder, "--facts", path, "--out", "e.safetensors"]
        refuses("edit", *options, says=says)


def test_conflicting_facts(refuses, model_folder, tmp_path):
    facts = [
        {"subject": "Ana", "prompt": "{} works as a", "target": target, "case_id": target}
        for target in ("baker", "pilot")
    ]
    (tmp_path / "facts.jsonl").write_text("\n".join(json.dumps(fact) for fact in facts))
    says = ["'Ana', '{} works as a': 'baker' (baker), 'pilot' (pilot)", "--on-conflict drop-all"]
    options = ["--model", model_folder, "--out", "out"]
    refuses("edit", *options, "--facts", "facts.jsonl", says=says)
    refuses("run", *options, "--dataset", "facts=facts.jsonl", says=says)
    nothing_left = [*options, "--facts", "facts.jsonl", "--on-conflict", "drop-all"]
    refuses("edit", *nothing_left, says="no fact is left")


def test_edit_for_another_model(
    invoke, refuses, model_folder, other_model_folder, facts_file, nudging
):
    options = ["--model", model_folder, "--facts", facts_file, "--editor", "nudge"]
    assert invoke("edit", *options, "--out", "e.safetensors", plugins=[nudging]).exit_code == 0
    options = ["--model", other_model_folder, "--edit", "e.safetensors", "--out", "edited"]
    message = refuses("apply", *options, says="the edit was computed for another model")
    assert str(model_folder) in message
    assert str(other_model_folder) in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot read the file"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{", "cannot read the file"),
        (None, "expected '<parameter>.left', '<parameter>.right' or '<parameter>.dense'"),
    ],
)
def test_file_that_is_no_edit(refuses, model_folder, tmp_path, content, says):
    path = tmp_path / "e.safetensors"
    if content is None:
        content = (model_folder / "model.safetensors").read_bytes()
    path.write_bytes(content)
    refuses("apply", "--model", model_folder, "--edit", path, "--out", "edited", says=says)


class TestSecondMoments:
    """Refused by `edit` and, before anything is run, by `run`."""

    @pytest.fixture
    def refuses_moments(self, refuses, facts_file):
        def check(model, moments, *options, says):
            options = ["--model", model, "--second-moments", moments, *options]
            refuses("edit", *options, "--facts", facts_file, "--out", "e.safetensors", says=says)
            run = ["run", *options, "--dataset", f"facts={facts_file}", "--out", "x"]
            return refuses(*run, says=says)

        return check

    def test_of_another_model(self, refuses_moments, other_model_folder, moments_file):
        refuses_moments(
            other_model_folder,
            moments_file,
            says=["collected from another model", "editbench stats"],
        )

    @pytest.mark.filterwarnings("default")  # that the file does not say what it was collected from
    def test_of_the_wrong_shape(self, refuses_moments, other_model_folder, moments_file, tmp_path):
        from safetensors.torch import load_file, save_file

        save_file(load_file(moments_file), tmp_path / "anonymous.safetensors")
        refuses_moments(
            other_model_folder,
            "anonymous.safetensors",
            says=["wrong shape, got (96, 96); expected (128, 128)"],
        )

    def test_without_a_layer(self, refuses_moments, model_folder, moments_file):
        layers = ["--set", "memit.critical_layers=[1,2,3]"]
        refuses_moments(model_folder, moments_file, *layers, says="has no layer 3")

    def test_damaged(self, refuses_moments, model_folder, moments_file, tmp_path):
        damaged = tmp_path / "damaged.safetensors"
        damaged.write_bytes(moments_file.read_bytes()[:-100])
        refuses_moments(model_folder, damaged, says="damaged.safetensors")

    @pytest.mark.parametrize("is_sealed", [True, False])
    @pytest.mark.parametrize(
        ("entry", "value", "says"),
        [
            ((slice(None), slice(None)), float("nan"), "finite, got nan at [0, 0]"),
            ((3, 5), float("nan"), "finite, got nan at [3, 5]"),
            ((7, 7), float("inf"), "finite, got inf at [7, 7]"),
            ((slice(None), slice(None)), 0.0, "no positive diagonal entry"),
            ((4, 4), -1.0, "negative diagonal entry, got -1.000e+00 at [4, 4]"),
            ((2, 6), 1e3, "not symmetric, got"),
        ],
    )
    @pytest.mark.filterwarnings("default")  # that the file does not say what it was collected from
    def test_that_is_none(
        self, refuses_moments, model_folder, moments_file, tmp_path, entry, value, says, is_sealed
    ):
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        moments = load_file(moments_file)
        moments["layers.2"][entry] = value
        with safe_open(moments_file, framework="pt") as file:
            metadata = file.metadata() if is_sealed else None
        save_file(moments, tmp_path / "spoiled.safetensors", metadata=metadata)
        said = refuses_moments(
            model_folder, "spoiled.safetensors", says=["spoiled.safetensors: layer 2", says]
        )
        assert ("The file was damaged" in said) == is_sealed

    def test_for_a_layer_that_the_model_lacks(self, refuses_moments, model_folder, moments_file):
        layers = ["--set", "memit.critical_layers=[1,9]"]
        refuses_moments(model_folder, moments_file, *layers, says="9")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--layers", "3-x"], "--layers: got '3-x'"),
        (["--layers", "5-3"], "the range is empty"),
        (["--layers", "1,9"], "9"),
        (["--n-tokens", "0"], "--n-tokens"),
        (["--corpus", "empty.txt"], "holds no text"),
    ],
)
def test_options_of_stats(refuses, model_folder, corpus_file, tmp_path, options, says):
    (tmp_path / "empty.txt").write_text("\n")
    fixed = ["--model", model_folder, "--corpus", corpus_file, "--out", "s.safetensors"]
    refuses("stats", *fixed, *options, says=says)


@pytest.mark.parametrize("command", ["edit", "stats", "apply"])
def test_place_that_cannot_be_written_to(refuses, model_folder, tmp_path, command):
    needed = {
        "edit": ["--facts", "facts.jsonl"],
        "stats": ["--corpus", "corpus.txt"],
        "apply": ["--edit", "e.safetensors"],
    }[command]
    options = [command, "--model", model_folder, *needed, "--out"]
    refuses(*options, "no-such-folder/x", says="there is no such folder, got 'no-such-folder'")
    if command == "apply":
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "something").touch()
        refuses(*options, "full", says="expected a new or empty folder, got 'full'")
    else:
        refuses(*options, "/dev/full", says="not an ordinary file, got '/dev/full'")


def test_several_settings_for_one_edit(refuses, edit_options):
    both = ["--set", "memit.kl_weight=0", "--set", "memit.kl_weight=1"]
    refuses(*edit_options, *both, says="one edit has one configuration, got 2")


@pytest.mark.parametrize("content", ["{", '["a"]', "[]", '[[""], []]', '[["", 1]]'])
def test_malformed_context_prefixes(refuses, edit_options, tmp_path, content):
    (tmp_path / "prefixes.json").write_text(content)
    refuses(*edit_options, "--context-prefixes", "prefixes.json", says="prefixes.json")


class Broken:
    """A plugin whose hook fails."""

    @hookimpl
    def editbench_register_editors(self):
        import a_module_that_is_not_there  # noqa: F401


def test_plugin_that_fails_to_import(invoke, refuses, make_plugin, run_options):
    plugins = [make_plugin("broken", Broken())]
    says = ["unknown editor 'theirs'", "plugin 'broken' failed: ModuleNotFoundError"]
    refuses(*run_options, "--editor", "theirs", plugins=plugins, says=says)
    listed = invoke("list", plugins=plugins)
    assert "memit" in listed.stdout
    assert listed.exit_code == 2
    assert listed.stderr.startswith("Error: plugin 'broken' failed: ModuleNotFoundError")
    assert listed.stderr.count("\n") == 1
    sound = [*run_options, "--editor", "unedited", "--n-edits", 1]
    assert invoke(*sound, plugins=plugins).exit_code == 0


def test_two_plugins_with_one_name(invoke, refuses, make_plugin, nudging, run_options):
    plugins = [nudging, make_plugin("copycat", nudging.plugin.__class__())]
    says = ["'nudge' is registered twice, by plugin 'nudging' and by plugin 'copycat'"]
    refuses(*run_options, "--editor", "memit", plugins=plugins, says=says)
    listed = invoke("list", plugins=plugins)
    assert (listed.exit_code, listed.stderr.count("\n")) == (2, 1)
    assert says[0] in listed.stderr
    assert "counterfact" in listed.stdout


class Raising:
    """A plugin with a command that raises what the test wants."""

    def __init__(self, error):
        self.error = error

    @hookimpl
    def editbench_register_commands(self, cli):
        @cli.command("raise")
        def raise_():
            """Raise something."""
            raise self.error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "big"), "no space left, got 'big'. Free"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left, while writing. Free"),
        (
            PermissionError(errno.EACCES, "Permission denied", "mine"),
            "Permission denied, got 'mine",
        ),
        (EditbenchError("two\n  lines"), "Error: two lines\n"),
        (MemoryError("12 GiB"), "raise: memory runs out and the work cannot be divided, got: 12"),
        (RuntimeError("HIP out of memory."), "got: HIP out of memory. Load the model with --dtype"),
    ],
)
def test_errors_become_one_line(refuses, make_plugin, error, says):
    refuses("raise", plugins=[make_plugin("raising", Raising(error))], says=says)


@pytest.mark.parametrize(
    "error",
    [ValueError("a defect"), RuntimeError("a defect"), OSError(errno.EIO, "Input/output error")],
)
def test_defects_keep_their_traceback(invoke, monkeypatch, error):
    def fail(self, kind):
        raise error

    monkeypatch.setattr(PluginManager, "registrations", fail)
    with pytest.raises(type(error)):
        invoke("list")


def test_defects_of_a_plugins_command_name_it(refuses, make_plugin):
    plugins = [make_plugin("raising", Raising(ValueError("a defect")))]
    says = "command 'raise' of plugin 'raising': failed, got ValueError: a defect. Tell"
    refuses("raise", plugins=plugins, says=says)


def test_report_of_a_damaged_run(invoke, refuses, run_options, tmp_path):
    invoke(*run_options, "--editor", "unedited", "--n-edits", 1)
    (rows,) = (tmp_path / "here").glob("trials/*/rows.jsonl")
    rows.write_text(rows.read_text()[:-20])
    refuses("report", "here", says=["rows.jsonl", "its checksum is another"])


@contextmanager
def full_disk(n_bytes):
    """Makes the kernel refuse to let a file of this process grow beyond `n_bytes`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestNoSpaceLeft:
    def test_edit(self, refuses, model_folder, facts_file, nudging):
        options = ["--model", model_folder, "--facts", facts_file, "--editor", "nudge"]
        with full_disk(1000):
            refuses(
                "edit", *options, "--out", "e.safetensors", plugins=[nudging],
                says=["cannot write the file, got 'e.safetensors'", "space left"],
            )  # fmt: skip

    def test_stats(self, refuses, model_folder, corpus_file):
        options = ["--model", model_folder, "--corpus", corpus_file, "--n-tokens", 200]
        with full_disk(1000):
            refuses("stats", *options, "--out", "s.safetensors", says="s.safetensors")

    def test_apply(self, invoke, refuses, model_folder, facts_file, nudging):
        options = ["--model", model_folder, "--facts", facts_file, "--editor", "nudge"]
        invoke("edit", *options, "--out", "e.safetensors", plugins=[nudging])
        options = ["--model", model_folder, "--edit", "e.safetensors", "--out", "edited"]
        with full_disk(5000):
            refuses("apply", *options, says=["cannot write the folder, got 'edited'", "space left"])

    def test_run(self, invoke, run_options, tmp_path):
        options = [*run_options, "--editor", "unedited", "--no-cache"]
        with full_disk(100):
            result = invoke(*options)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert "cannot write, got 'here" in result.stderr
        assert not (tmp_path / "here").exists()
        with full_disk(4000):  # enough for run.json, but not for rows
            result = invoke(*options)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert "make room" in result.stderr
        assert not list((tmp_path / "here").glob("trials/*"))
        assert invoke(*options, "--resume").exit_code == 0

    def test_report(self, invoke, refuses, run_options):
        invoke(*run_options, "--editor", "unedited")
        options = ["report", "here", "--format", "csv", "--output", "table.csv"]
        with full_disk(100):
            refuses(*options, says="no space left, got 'table.csv'")


class TestTokenWithoutAnEmbeddingRow:
    @pytest.fixture
    def grown(self, model_folder, tmp_path):
        """A model whose tokenizer was given a word, its embeddings no row; and what is said."""
        folder = tmp_path / "grown"
        shutil.copytree(model_folder, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        n_rows = json.loads((folder / "config.json").read_text())["vocab_size"]
        words = [f"Zorblax{n}" for n in range(n_rows - len(tokenizer) + 1)]
        tokenizer.add_tokens([*words[:-1], "Zorblax"])
        tokenizer.save_pretrained(folder)
        says = (
            f"the tokenizer has {n_rows + 1} tokens, the embedding {n_rows} rows",
            f"uses {n_rows} ('Zorblax')",
            "Resize the embeddings",
        )
        return folder, says

    @pytest.mark.parametrize(("subject", "target"), [("Zorblax", "house"), ("Danielle", "Zorblax")])
    @pytest.mark.parametrize("editor", ["memit", "rome", "ft-w", "unedited"])
    def test_edit(self, refuses, grown, tmp_path, editor, subject, target):
        folder, says = grown
        facts = tmp_path / "grown.jsonl"
        fact = {"subject": subject, "prompt": "{} lives in a big", "target": target}
        facts.write_text(json.dumps(fact))
        options = ["--model", folder, "--facts", facts, "--out", "e.safetensors"]
        refuses("edit", "--editor", editor, *options, says=says)

    def test_trace(self, refuses, grown, tmp_path):
        folder, says = grown
        facts = tmp_path / "grown.json"
        fact = {"subject": "Zorblax", "prompt": "Zorblax lives in a big", "attribute": "house"}
        facts.write_text(json.dumps([fact]))
        options = ["--model", folder, "--facts", facts, "--out", "t", "--quiet"]
        refuses("trace", *options, says=says)

    def test_corpus(self, refuses, grown, tmp_path):
        folder, says = grown
        corpus = tmp_path / "corpus.txt"
        corpus.write_text("Zorblax lives in a big house.\n" * 50)
        options = ["--model", folder, "--corpus", corpus, "--out", "m.safetensors", "--quiet"]
        refuses("stats", *options, says=says)

    def test_run(self, invoke, grown, tmp_path):
        folder, says = grown
        facts = tmp_path / "grown.jsonl"
        fact = {"subject": "Zorblax", "prompt": "{} lives in a big", "target": "house"}
        facts.write_text(json.dumps({**fact, "target_true": "barn"}))
        options = ["--dataset", f"facts={facts}", "--editor", "ft-w", "--out", "r", "--n-edits", 1]
        result = invoke("run", "--model", folder, *options)
        assert result.exit_code == 1
        assert all(part in result.output for part in says)
        assert "Traceback" not in result.output

    def test_one_that_no_text_uses_is_no_matter(self, invoke, grown, facts_file):
        options = ["--model", grown[0], "--facts", facts_file, "--out", "e.safetensors"]
        assert invoke("edit", "--editor", "ft-w", *options).exit_code == 0


def test_chat_fact_for_a_model_without_a_chat_template(refuses, model_folder, tmp_path):
    facts = tmp_path / "chat.jsonl"
    fact = {"subject": "Zoë", "prompt": "Who is {}?", "target": "French", "chat": True}
    facts.write_text(json.dumps({**fact, "case_id": "c7"}))
    options = ["--model", model_folder, "--facts", facts, "--out", "e.safetensors"]
    refuses("edit", *options, says="request 'c7': chat: the model's tokenizer has no chat template")
