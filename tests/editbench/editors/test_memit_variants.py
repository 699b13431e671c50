"""MEMIT's variants: attention's output projections, any set of layers, any λ.

Every edit is worked out once more from what the paper says: whole forwards of a copy in float64, a
plain inverse, the weights changed for good, and all again for the next layer.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from editbench.datasets.corpus import Corpus
from editbench.editors.base import Resources
from editbench.editors.closed_form.norm_behind import NormBehind
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.memit import Memit, MemitConfig
from editbench.editors.targets.cache import TargetCache
from editbench.editors.targets.target_hidden import optimize_target_hidden
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import ConfigError, SecondMomentError
from editbench.models.architecture import ProjectionKind
from editbench.models.editable import EditableModel
from editbench.progress import report_nothing
from editbench.requests import EditRequest
from editbench.second_moments.moment_files import load_second_moments, save_second_moments
from editbench.second_moments.obtaining import (
    collect_second_moments,
    collect_to_file,
    obtain_second_moments,
    read_second_moments,
)
from editbench.testing import check_editor, tiny_model, toy_cases, toy_corpus

PREFIXES = ContextPrefixes((("",), ("It is known. ", "In 1990 we met. ")))
PREFIX_WEIGHTS = (1 / 2, 1 / 4, 1 / 4)
REQUESTS = [
    EditRequest("0", "Zoë Brandt", "{} plays the sport of", "tennis"),
    EditRequest("1", "Danielle Darrieux", "The mother tongue of {} is", "French"),
    EditRequest("2", "北京", "{} is the capital of", "Spain"),
]
SUBSETS = [layers for n in (1, 2, 3, 4) for layers in itertools.combinations(range(4), n)]


def configure(layers: Sequence[int], module: ProjectionKind, weight: float = 1.0) -> MemitConfig:
    return MemitConfig(
        critical_layers=tuple(layers),
        module=module,
        preservation_weight=weight,
        n_steps=3,
        learning_rate=0.3,
        learning_rate_unit="relative",
        second_moment_tokens=10_000,
    )


def write_corpus() -> list[str]:
    """Random text, over all tokens."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(32, 0x250, (30, 40), generator=generator)
    return ["".join(chr(code) for code in row) for row in codes.tolist()]


CORPUS = Corpus("random", "1", write_corpus)


def read_inputs_and_outputs(
    network: nn.Module, ids: Sequence[int], projection: str, block: str
) -> tuple[Tensor, Tensor]:
    """What goes into `projection`, and what `block` says, in one whole forward of one text."""
    seen: dict[str, Tensor] = {}

    def keep_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["input"] = args[0].reshape(len(ids), -1)

    def keep_output(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        states = output if isinstance(output, Tensor) else output[0]
        seen["output"] = states.reshape(len(ids), -1)

    handles = [
        network.get_submodule(projection).register_forward_pre_hook(keep_input),
        network.get_submodule(block).register_forward_hook(keep_output),
    ]
    with torch.no_grad():
        network(input_ids=torch.tensor([list(ids)]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen["input"], seen["output"]


def work_out(
    model: EditableModel,
    config: MemitConfig,
    requests: Sequence[EditRequest],
    targets: Tensor,
    moments: Callable[[nn.Module, str, str], Tensor],
) -> dict[str, Tensor]:
    """Δ of every layer, float64 `[d_out, d_in]`, by projection."""
    unedited = copy.deepcopy(model.model).double()
    network = copy.deepcopy(unedited)
    last = model.architecture.block(config.critical_layers[-1])
    updates = {}
    for index, layer in enumerate(config.critical_layers):
        mlp, attention = (
            model.architecture.mlp_projections,
            model.architecture.attention_projections,
        )
        projection = (mlp if config.module == "mlp" else attention)[layer]
        keys, hidden = [], []
        for request in requests:
            key: Tensor | float = 0.0
            for prefix, weight in zip(PREFIXES.flat, PREFIX_WEIGHTS, strict=True):
                text, start = prefix + request.text, len(prefix) + request.subject_start
                place = model.tokens.locate(text, start, start + len(request.subject))
                ids = model.tokens.encode(text)
                inputs, outputs = read_inputs_and_outputs(network, ids, projection, last)
                key = key + weight * inputs[place]
                if prefix == "":
                    hidden.append(outputs[place])
            keys.append(key)
        k = torch.stack(keys)
        residuals = (targets.double() - torch.stack(hidden)) / (len(config.critical_layers) - index)
        c = moments(unedited, projection, last)
        system = config.preservation_weight * c + k.T @ k
        updates[projection] = residuals.T @ k @ torch.linalg.inv(system)
        weight = network.get_submodule(projection).get_parameter("weight")
        stored_transposed = is_conv1d(network, projection)
        weight.data += updates[projection].T if stored_transposed else updates[projection]
    return updates


def target_states(
    model: EditableModel, config: MemitConfig, requests: Sequence[EditRequest], cache: Path
) -> Tensor:
    return optimize_target_hidden(
        model,
        requests,
        layer=config.critical_layers[-1],
        settings=config,
        prefixes=PREFIXES.flat,
        cache=TargetCache(cache),
        report_progress=report_nothing,
    ).states


def is_conv1d(network: nn.Module, projection: str) -> bool:
    """Whether the weight is stored as `[d_in, d_out]`."""
    return type(network.get_submodule(projection)).__name__ == "Conv1D"


def assert_same(model: EditableModel, edit: object, expected: dict[str, Tensor]) -> None:
    """The edit holds these updates, adds them to their weights, and changes nothing else."""
    assert isinstance(edit, WeightEdit)
    assert set(edit.updates) == {f"{projection}.weight" for projection in expected}
    before = {name: p.double() for name, p in model.model.named_parameters()}
    with edit.applied(model):
        after = {name: p.double() for name, p in model.model.named_parameters()}
    assert {name for name in before if not torch.equal(before[name], after[name])} <= {
        *edit.updates
    }
    for projection, update in expected.items():
        name = f"{projection}.weight"
        stored = edit.updates[name]
        dense = (stored if isinstance(stored, Tensor) else stored.dense()).double()
        assert (dense - update).norm() < 1e-3 * update.norm(), projection
        oriented = dense.T if is_conv1d(model.model, projection) else dense
        torch.testing.assert_close(after[name], before[name] + oriented, rtol=1e-6, atol=1e-6)


def test_attention_is_edited_as_the_paper_says(family_model: EditableModel, tmp_path: Path) -> None:
    model, config = family_model, configure((0, 2), "attention")
    if any(NormBehind.find(model, layer, "attention") for layer in config.critical_layers):
        pytest.skip("the paper knows no norm behind the projection: test_norm_behind.py")
    resources = Resources(seed=0, corpus=CORPUS, context_prefixes=PREFIXES, cache=tmp_path)
    fingerprint = model.compute_fingerprint()
    edit = Memit(config).edit(model, REQUESTS, resources)
    assert model.compute_fingerprint() == fingerprint

    def moments(network: nn.Module, projection: str, block: str) -> Tensor:
        tokens = [
            read_inputs_and_outputs(network, ids[: model.max_positions], projection, block)[0]
            for ids in map(model.tokens.encode, CORPUS.texts())
        ]
        keys = torch.cat(tokens)
        return keys.T @ keys / len(keys)

    targets = target_states(model, config, REQUESTS, tmp_path)
    expected = work_out(model, config, REQUESTS, targets, moments)
    assert set(expected) == {model.architecture.attention_projections[layer] for layer in (0, 2)}
    assert_same(model, edit, expected)


@pytest.fixture(scope="module", params=["mlp", "attention"])
def module(request: pytest.FixtureRequest) -> ProjectionKind:
    return request.param


@pytest.fixture(scope="module")
def moments_file(module: ProjectionKind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(module) / "moments.safetensors"
    collect_to_file(tiny_model(), toy_corpus(), range(4), 4_000, path, report_nothing, module)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    ("layers", "weight"),
    [*((layers, 20.0) for layers in SUBSETS), ((1, 3), 1e-3), ((0, 2), 1e7)],
    ids=str,
)
def test_any_layers_and_any_weight(
    module: ProjectionKind, moments_file: Path, cache: Path, layers: tuple[int, ...], weight: float
) -> None:
    """The first, the last, one alone, with gaps: each takes its share of what is left."""
    model, config = tiny_model(), configure(layers, module, weight)
    requests = [case.request for case in toy_cases(3)]
    resources = Resources(
        seed=0, second_moments=moments_file, context_prefixes=PREFIXES, cache=cache
    )
    edit = Memit(config).edit(model, requests, resources)
    stored = iter(read_second_moments(model, layers, moments_file, module).values())
    targets = target_states(model, config, requests, cache)
    expected = work_out(model, config, requests, targets, lambda *_: next(stored))
    assert_same(model, edit, expected)


def test_attention_keeps_the_editor_contract() -> None:
    class AttentionMemit(Memit):
        @classmethod
        def derive_defaults(cls, model: EditableModel) -> dict[str, object]:
            return {**super().derive_defaults(model), "module": "attention"}

    assert [result for result in check_editor(AttentionMemit) if not result.passed] == []


def test_only_the_two_modules_can_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="field 'module'"):
        configure((0,), "mlp").updated({"module": "attn"}, "--set")


def test_target_states_are_shared_between_modules(tmp_path: Path) -> None:
    model, targets = tiny_model(), TargetCache(None)
    request = toy_cases(1)[0].request
    keys = {
        targets.key(model, request, 2, configure((2,), module), PREFIXES.flat)
        for module in ("mlp", "attention")
    }
    assert len(keys) == 1


def test_a_file_says_whose_keys_it_holds(module: ProjectionKind, moments_file: Path) -> None:
    other: ProjectionKind = "attention" if module == "mlp" else "mlp"
    provenance = load_second_moments(moments_file).provenance
    assert provenance is not None
    assert provenance["module"] == module
    message = rf"other keys, got those of module '{module}'; expected '{other}'.*--module {other}"
    with pytest.raises(SecondMomentError, match=message):
        read_second_moments(tiny_model(), [1], moments_file, other)


def test_a_file_from_before_the_choice_is_of_the_mlp_s_keys(tmp_path: Path) -> None:
    model, path = tiny_model(), tmp_path / "moments.safetensors"
    save_second_moments(
        path,
        collect_second_moments(model, toy_corpus(), [1], 500, report_nothing),
        {"model_fingerprint": model.fingerprint},
    )
    assert read_second_moments(model, [1], path)[1].shape == (96, 96)
    with pytest.raises(SecondMomentError, match="got those of module 'mlp'; expected 'attention'"):
        read_second_moments(model, [1], path, "attention")


@pytest.mark.filterwarnings("ignore:second moments. .* does not say which model")
def test_without_provenance_the_shape_decides(tmp_path: Path) -> None:
    model = tiny_model()
    path = tmp_path / "moments.safetensors"
    moments = collect_second_moments(
        model, toy_corpus(), [1], 500, report_nothing, module="attention"
    )
    save_second_moments(path, moments, None)
    assert read_second_moments(model, [1], path, "attention")[1].shape == (24, 24)
    with pytest.raises(SecondMomentError, match=r"got \(24, 24\); expected \(96, 96\), .*'mlp'"):
        read_second_moments(model, [1], path)


def test_the_cache_keeps_the_modules_apart(tmp_path: Path) -> None:
    resources = Resources(seed=0, cache=tmp_path, corpus=toy_corpus())
    shapes = [
        obtain_second_moments(tiny_model(), [1], 500, resources, module)[1].shape
        for module in ("mlp", "attention", "mlp")
    ]
    assert shapes == [(96, 96), (24, 24), (96, 96)]
