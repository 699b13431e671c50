"""ROME: the reference's vectors, one edit after another, its cache, its site, its contract."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from editbench.datasets.corpus import Corpus
from editbench.editors.base import Resources
from editbench.editors.closed_form.value_goals import STAGE
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.keys.reading import read_projection
from editbench.editors.rome import Rome, RomeConfig, derive_rome_defaults
from editbench.editors.targets.optimizer import TargetOptimizer
from editbench.editors.targets.tasks import TargetTask
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import ConfigError, EditError, ModelError, SecondMomentError
from editbench.models.builtin_specs import BUILTIN_SPECS
from editbench.models.editable import EditableModel
from editbench.plugins.atlas import ATLAS
from editbench.replay.offset_forward import FullForward, OffsetRow, OffsetSite
from editbench.replay.suffix_replay import SuffixReplay
from editbench.second_moments.obtaining import obtain_second_moments
from editbench.testing import check_editor, tiny_model, toy_cases, toy_corpus
from memit_core import UpdateFactors, capture

LAYER = 1
CONFIG = RomeConfig(
    critical_layers=(LAYER,),
    n_steps=4,
    learning_rate=0.2,
    learning_rate_unit="relative",
    second_moment_tokens=2_000,
)
PREFIXES = ContextPrefixes((("",), ("Ana Lund met Boris Sato. ", "It is known. ")))
REQUESTS = [case.request for case in toy_cases(3)]
GOLDEN_CASES = (0, 7, 13)


def resources(**changes: object) -> Resources:
    return Resources(**{"seed": 0, "corpus": toy_corpus(), "context_prefixes": PREFIXES, **changes})


def weight_name(model: EditableModel, layer: int = LAYER) -> str:
    return model.architecture.weight_name(model.architecture.mlp_projections[layer])


def factors_of(edit: object, model: EditableModel, layer: int = LAYER) -> UpdateFactors:
    assert isinstance(edit, WeightEdit)
    factors = edit.updates[weight_name(model, layer)]
    assert isinstance(factors, UpdateFactors)
    return factors


def write_moment(moment: torch.Tensor, layer: int, path: Path) -> None:
    provenance = json.dumps({"provenance": {"corpus": "test"}})
    save_file({f"layers.{layer}": moment}, path, metadata={"editbench": provenance})


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(scope="module")
def golden_rome(golden, tmp_path_factory):
    """The reference's configuration in our words, its second moment, and its vectors."""
    hparams = json.loads((golden.folder / "hparams.json").read_text())["rome"]
    (layer,) = hparams["layers"]
    stored = load_file(golden.folder / "covariance.safetensors")
    moments = tmp_path_factory.mktemp("rome") / "moments.safetensors"
    write_moment(stored[f"layer.{layer}.moment"], layer, moments)
    config = RomeConfig(
        critical_layers=(layer,),
        n_steps=hparams["v_num_grad_steps"],
        learning_rate=hparams["v_lr"],
        clamp_factor=hparams["clamp_norm_factor"],
        offset_decay=hparams["v_weight_decay"],
        kl_weight=hparams["kl_factor"],
        loss_layer=hparams["v_loss_layer"],
        keys="reference",
    )
    return config, moments, load_file(golden.folder / "rome.safetensors")


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_target_u_v_and_update_match_the_reference(golden, golden_rome, case: int) -> None:
    config, moments, vectors = golden_rome
    model, request = golden.model, golden.requests[case]
    (layer,) = config.critical_layers
    expected = {name: vectors[f"case.{case}.{name}"] for name in ("target", "u", "v", "update")}
    bare = read_projection(model, request, [""], layer)
    assert relative_error(bare.keys[0], vectors[f"case.{case}.key_bare"]) < 1e-5
    assert relative_error(bare.values[0], vectors[f"case.{case}.mlp_out_bare"]) < 1e-5

    before = model.compute_fingerprint()
    edit = Rome(config).edit(
        model,
        [request],
        Resources(seed=0, second_moments=moments, context_prefixes=golden.prefixes),
    )
    assert model.compute_fingerprint() == before
    losses = json.loads((golden.folder / "rome_losses.json").read_text())
    trace = next(one["trace"] for one in losses if one["case_id"] == case)
    assert edit.card.extra["replay_failure"] is None
    assert edit.card.extra["target_steps"] == len(trace)
    assert abs(edit.card.extra["target_loss"] - trace[-1]["loss"]) < 1e-3
    factors = factors_of(edit, model, layer)
    left, right = factors.left[:, 0], factors.right[:, 0]
    assert relative_error(bare.values[0] + left, expected["target"]) < 1e-3
    assert relative_error(right / right.norm(), expected["u"]) < 5e-3
    assert relative_error(left * right.norm(), expected["v"]) < 5e-3
    parameter = model.model.get_parameter(weight_name(model, layer))
    with edit.applied(model):
        edited = parameter.clone()
    assert relative_error(edited - parameter, expected["update"]) < 5e-3


def test_rome_keeps_the_editor_contract() -> None:
    assert [result for result in check_editor(Rome) if not result.passed] == []


def test_the_mean_key_maps_to_the_target_exactly() -> None:
    """The equality constraint, in the consistent form; the reference's meets it nowhere."""
    model, request = tiny_model(), REQUESTS[0]
    for keys in ("consistent", "reference"):
        config = CONFIG.updated({"keys": keys}, "test")
        reading = read_projection(model, request, PREFIXES.flat, LAYER)
        task = TargetTask.of(model.tokens, 0, request, PREFIXES.flat)
        optimizer = TargetOptimizer(model, OffsetSite.mlp_output(model, LAYER), config, replay=True)
        (target,) = optimizer.run([task], lambda *_: None, initial=reading.values[:1])
        edit = Rome(config).edit(model, [request], resources())
        with edit.applied(model):
            after = read_projection(model, request, PREFIXES.flat, LAYER)
        error = relative_error(after.values.mean(dim=0), target.state)
        bare_error = relative_error(after.values[0], target.state)
        assert (error < 1e-5) == (keys == "consistent")
        assert (bare_error < 1e-5) == (keys == "reference")


def test_n_edits_are_n_edits_of_one_fact_each_on_the_edited_model() -> None:
    """The whole edit, worked out naively: edit, put it on for good, edit again."""
    model, naive = tiny_model(), tiny_model()
    moment = obtain_second_moments(tiny_model(), (LAYER,), 2_000, resources())[LAYER]
    edit = Rome(CONFIG).edit(model, REQUESTS, resources())
    weight = naive.model.get_parameter(weight_name(naive))
    for request in REQUESTS:
        reading = read_projection(naive, request, PREFIXES.flat, LAYER)
        task = TargetTask.of(naive.tokens, 0, request, PREFIXES.flat)
        site = OffsetSite.mlp_output(naive, LAYER)
        (target,) = TargetOptimizer(naive, site, CONFIG, replay=False).run(
            [task], lambda *_: None, initial=reading.values[:1]
        )
        key = reading.keys.double().mean(dim=0)
        direction = torch.linalg.solve(moment, key)
        residual = target.state.double() - reading.values.double().mean(dim=0)
        weight += torch.outer(direction / (key @ direction), residual).to(weight)
    factors = factors_of(edit, model)
    assert factors.rank == len(REQUESTS)
    with edit.applied(model):
        torch.testing.assert_close(
            model.model.get_parameter(weight_name(model)), weight, rtol=1e-4, atol=1e-5
        )


def test_a_longer_list_reuses_what_a_shorter_one_computed(tmp_path: Path) -> None:
    model = tiny_model()
    fresh = Rome(CONFIG).edit(model, REQUESTS, resources())

    def count_steps(requests: list, config: RomeConfig = CONFIG) -> tuple[object, int]:
        reports: list[str] = []

        def note(stage: str, done: int, total: int, note: str = "") -> None:
            if stage == STAGE:
                reports.append(note)

        edit = Rome(config).edit(model, requests, resources(cache=tmp_path, report_progress=note))
        return edit, len(reports) - len(requests)

    _, n_first = count_steps(REQUESTS[:2])
    assert n_first > 0
    cached, n_rest = count_steps(REQUESTS)
    assert 0 < n_rest <= CONFIG.n_steps
    assert count_steps(REQUESTS)[1] == 0
    for part in ("left", "right"):
        assert torch.equal(
            getattr(factors_of(cached, model), part), getattr(factors_of(fresh, model), part)
        )
    # What came before is part of the key, and so is every hyperparameter of the optimization.
    assert count_steps(REQUESTS[1:])[1] > CONFIG.n_steps
    assert count_steps(REQUESTS[:1], CONFIG.updated({"kl_weight": 0.5}, "test"))[1] > 0
    # What is done to the weight is none of these, but the next fact sees it.
    other = CONFIG.updated({"keys": "reference"}, "test")
    assert count_steps(REQUESTS[:1], other)[1] == 0
    assert count_steps(REQUESTS[:2], other)[1] > 0


def test_progress_counts_edits_and_shows_the_loss() -> None:
    reports: list[tuple[int, int, str]] = []

    def note(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == STAGE:
            reports.append((done, total, note))

    edit = Rome(CONFIG).edit(tiny_model(), REQUESTS[:2], resources(report_progress=note))
    assert [done for done, _, _ in reports] == sorted(done for done, _, _ in reports)
    assert reports[-1][:2] == (2, 2)
    assert all(note.startswith("loss ") for _, _, note in reports)
    assert edit.card.extra["target_loss"] > 0


def test_an_interrupted_edit_leaves_the_model_as_it_was() -> None:
    model = tiny_model()
    before = model.compute_fingerprint()

    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        if done == 2:
            assert model.compute_fingerprint() != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Rome(CONFIG).edit(model, REQUESTS, resources(report_progress=interrupt))
    assert model.compute_fingerprint() == before


def test_no_request_is_an_edit_that_changes_nothing() -> None:
    assert not Rome(CONFIG).edit(tiny_model(), [], resources()).changes_something


@pytest.fixture(scope="module", params=["gptj", "gemma2", "olmo2", "opt", "bloom"])
def various(request: pytest.FixtureRequest) -> EditableModel:
    """Parallel blocks, norms behind the MLP, an MLP that flattens, one that adds the residual."""
    import transformers as hf

    tokens = {"vocab_size": 420, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    grouped = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 40,
        "max_position_embeddings": 64,
    }
    config = {
        "gptj": lambda: hf.GPTJConfig(
            n_embd=24, n_layer=3, n_head=2, rotary_dim=4, n_positions=64, **tokens
        ),
        "gemma2": lambda: hf.Gemma2Config(**grouped, head_dim=12, sliding_window=6, **tokens),
        "olmo2": lambda: hf.Olmo2Config(**grouped, **tokens),
        "opt": lambda: hf.OPTConfig(
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            ffn_dim=40,
            max_position_embeddings=64,
            word_embed_proj_dim=24,
            **tokens,
        ),
        "bloom": lambda: hf.BloomConfig(hidden_size=24, n_layer=3, n_head=2, **tokens),
    }[request.param]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.3)
    return EditableModel(network, tiny_model().tokens, name=request.param)


def test_replay_of_an_offset_at_the_mlp_equals_whole_forwards(various: EditableModel) -> None:
    texts = ["Ana Lund works as a", "Everybody knows that Boris Sato is a pilot"]
    ids = [tuple(various.tokens.encode(text)) for text in texts]
    rows = [OffsetRow(row, 3, (len(row) - 2, len(row) - 1)) for row in ids]
    offsets = torch.randn(2, 24, generator=torch.Generator().manual_seed(1))
    site = OffsetSite.mlp_output(various, LAYER)
    with torch.no_grad():
        replayed = SuffixReplay(various, site, rows).logits(offsets)
        whole = FullForward(various, site, rows).logits(offsets)
        without = FullForward(various, site, rows).logits(torch.zeros_like(offsets))
    torch.testing.assert_close(replayed, whole, rtol=1e-4, atol=1e-4)
    assert (whole - without).abs().max() > 1e-2


def test_an_offset_at_the_mlp_is_what_an_update_adds(various: EditableModel) -> None:
    """Of one token alone, whose key the update δ kᵀ / (kᵀk) turns into δ."""
    token = various.tokens.encode("Ana")[0]
    site = OffsetSite.mlp_output(various, LAYER)
    inputs = various.batch([[token]])
    with torch.no_grad(), capture(various.model, inputs_of=[site.module]) as seen:
        various.model(**inputs)
    key = seen.inputs[site.module].reshape(-1, 1)
    offset = torch.randn(1, 24, generator=torch.Generator().manual_seed(1))
    edit = WeightEdit.build(
        various,
        editor="test",
        config={},
        requests=REQUESTS[:1],
        updates={weight_name(various): UpdateFactors(offset.T, key / key.square().sum())},
    )
    with torch.no_grad(), edit.applied(various):
        expected = various.model(**inputs).logits[0]
    row = OffsetRow((token,), 0, (0,))
    for forward in (SuffixReplay(various, site, [row]), FullForward(various, site, [row])):
        with torch.no_grad():
            found = forward.logits(offset)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_every_architecture_can_be_edited(various: EditableModel, tmp_path: Path) -> None:
    moments = tmp_path / "moments.safetensors"
    write_moment(torch.eye(various.d_key(LAYER)), LAYER, moments)
    some = resources(second_moments=moments)
    edit = Rome(CONFIG).edit(various, REQUESTS[:1], some)
    factors = factors_of(edit, various)
    before = read_projection(various, REQUESTS[0], PREFIXES.flat, LAYER)
    with edit.applied(various):
        after = read_projection(various, REQUESTS[0], PREFIXES.flat, LAYER)
    moved = (after.values - before.values).mean(dim=0)
    torch.testing.assert_close(moved, factors.left[:, 0], rtol=1e-4, atol=1e-4)
    assert moved.norm() > 0


@pytest.mark.parametrize("is_cached", [False, True])
def test_neurons_that_never_fire_are_left_alone(tmp_path: Path, is_cached: bool) -> None:
    """They make C singular, however much text it is collected from."""
    model = tiny_model()
    name = weight_name(model)
    dead = [3, 50]
    with torch.no_grad():
        inner = model.model.get_submodule(f"transformer.h.{LAYER}.mlp.c_fc")
        inner.weight[:, dead] = 0  # GPT-2's GELU says 0 of 0, as OPT's ReLU does of less
        inner.bias[dead] = 0
    some = resources(cache=tmp_path if is_cached else None)
    moment = obtain_second_moments(model, (LAYER,), CONFIG.second_moment_tokens, some)[LAYER]
    assert moment.diagonal().eq(0).nonzero()[:, 0].tolist() == dead
    edits = [Rome(CONFIG).edit(model, REQUESTS[:1], some) for _ in range(2)]
    keys = read_projection(model, REQUESTS[0], PREFIXES.flat, LAYER).keys.double()
    live = moment.diagonal() > 0
    expected = torch.zeros(len(live), dtype=torch.float64)
    expected[live] = torch.linalg.solve(moment[live][:, live].double(), keys.mean(dim=0)[live])
    for edit in edits:
        assert isinstance(edit, WeightEdit)
        right = edit.updates[name].right[:, 0].double()
        assert right[dead].tolist() == [0, 0]
        cosine = torch.nn.functional.cosine_similarity(right, expected, dim=0)
        assert cosine > 1 - 1e-4


def test_a_key_that_says_nothing_is_refused_by_its_request(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        inner = model.model.get_submodule(f"transformer.h.{LAYER}.mlp.c_fc")
        inner.weight.zero_()
        inner.bias.zero_()
        inner.bias[0] = 1.0
    moments = torch.eye(model.d_key(LAYER))
    moments[0, 0] = 0
    path = tmp_path / "moments.safetensors"
    write_moment(moments, LAYER, path)
    text = re.escape(REQUESTS[0].text)
    with pytest.raises(EditError, match=rf"rome on 'tiny', '{text}': .*key"):
        Rome(CONFIG).edit(model, REQUESTS, resources(second_moments=path))


def test_prefixes_of_both_lengths_are_sampled_with_the_seed() -> None:
    model = tiny_model()
    config = CONFIG.updated({"n_context_prefixes": 2, "n_steps": 1}, "test")

    def sampled(seed: int) -> list[list[str]]:
        some = resources(context_prefixes=None, seed=seed)
        return Rome(config).edit(model, REQUESTS[:1], some).card.extra["context_prefixes"]

    bare, others = sampled(0)
    assert bare == [""]
    assert len(others) == 4
    assert sampled(0) == [bare, others]
    assert sampled(1) != [bare, others]


def test_published_hyperparameters_are_the_reference_s() -> None:
    published = {
        spec.name: RomeConfig.parse(spec.defaults["rome"], "test")
        for spec in (*BUILTIN_SPECS, ATLAS)
        if "rome" in spec.defaults
    }
    layers = {"gpt2-xl": (17,), "gpt-j-6b": (5,), "gpt-neox-20b": (15,)}
    assert {name: published[name].critical_layers for name in layers} == layers
    for name in layers:
        config = published[name]
        assert (config.n_steps, config.learning_rate, config.clamp_factor) == (20, 0.5, 4)
        assert (config.offset_decay, config.kl_weight) == (0.5, 0.0625)


@pytest.mark.parametrize("n_layers", [1, 2, 4, 12, 24, 36, 48])
def test_the_derived_layer_exists_and_lies_at_a_third(n_layers: int) -> None:
    config = RomeConfig.parse(derive_rome_defaults(n_layers, 1_024), "test")
    (layer,) = config.critical_layers
    assert 0 <= layer < n_layers
    if n_layers >= 12:
        assert layer == n_layers // 3


def test_errors_say_what_is_wrong() -> None:
    model = tiny_model()
    with pytest.raises(ModelError, match="no such layer: got 9; expected 0 to 3"):
        Rome(CONFIG.updated({"critical_layers": [9]}, "test")).edit(model, REQUESTS, resources())
    with pytest.raises(ConfigError, match="field 'keys'"):
        RomeConfig.parse({"critical_layers": [1], "keys": "both"}, "my.yaml")
    poor = Corpus("poor", "poor", lambda: ["Ana Lund met Boris Sato."])
    with pytest.raises(SecondMomentError, match=r"layer 1: .*singular.*more tokens"):
        Rome(CONFIG).edit(model, REQUESTS, resources(corpus=poor))
