import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from editbench.atlas import default_world
from editbench.atlas.demonstrations import DOMAIN, FACTS_FILE, FRESHNESS, N_FACTS, write_facts
from editbench.datasets.base import Dataset
from editbench.datasets.facts import read_facts
from editbench.editors.finetune import FineTune
from editbench.editors.memit import Memit
from editbench.editors.rome import Rome
from editbench.errors import ConfigError
from editbench.experiments import EXPERIMENTS, Setup
from editbench.experiments.ablations import layer_sets
from editbench.experiments.comparisons import scaling_sizes
from editbench.experiments.lifelong import checkpoints_of
from editbench.experiments.relations import PAIRS
from editbench.metrics.probes import Accuracy, Success
from editbench.models.editable import EditableModel
from editbench.requests import EditCase, EditRequest, Probe
from editbench.runner import Inputs
from editbench.testing import tiny_model

RELATIONS = {"occupation": 60, "headquarters": 45, "citizenship": 30, "hobby": 5}


class Related(Dataset):
    """Facts of several relations."""

    name: ClassVar[str] = "related"
    fingerprint = "related-1"

    def __init__(self, sizes: dict[str, int] = RELATIONS) -> None:
        self.sizes = sizes

    def cases(self) -> Sequence[EditCase]:
        return [
            EditCase(
                EditRequest(f"{relation}{index}", f"Ana{index}", "{} is a", "poet", relation),
                probes=(Probe("efficacy", f"Ana{index} is a", "poet", "thief"),),
            )
            for relation, size in self.sizes.items()
            for index in range(size)
        ]


class Nameless(Related):
    """Facts without relations."""

    def cases(self) -> Sequence[EditCase]:
        return [
            EditCase(EditRequest(str(index), "Ana", "{} is a", "poet"), probes=())
            for index in range(3)
        ]


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model(n_layers=4)


def make_setup(
    model: EditableModel, dataset: Dataset | None = None, max_edits: int | None = None
) -> Setup:
    return Setup(
        model=model,
        dataset=dataset or Related(),
        configured={
            editor.name: editor(editor.default_config(model)[0])
            for editor in (Memit, Rome, FineTune)
        },
        metrics={metric.name: metric for metric in (Success(), Accuracy())},
        max_edits=max_edits,
        seed=3,
        on_conflict="keep-first",
        inputs=Inputs(),
    )


def test_the_sizes_of_scaling_are_the_papers():
    sizes = scaling_sizes(10_000)
    assert len(sizes) == 17
    assert sizes[0] == 1
    assert sizes[-1] == 10_000
    assert sizes[4] == 10
    assert sizes[9:12] == [178, 316, 562]
    assert all(one < other for one, other in itertools.pairwise(sizes))


def test_scaling_ends_with_the_largest_size_there_is():
    assert scaling_sizes(1_024)[-3:] == [562, 1_000, 1_024]
    assert scaling_sizes(1) == [1]


def test_few_edits_are_written_in_many_batches(model):
    trials = EXPERIMENTS["scaling"].trials(make_setup(model))
    batches = {trial.n_edits: trial.n_batches for trial in trials}
    assert batches[1] == 50
    assert batches[18] == 3
    assert batches[100] == 1
    assert max(batches) == 140
    for trial in trials:
        assert trial.n_edits * trial.n_batches <= 140


def test_the_unedited_model_stands_next_to_every_editor(model):
    for name in ("table2", "scaling", "categories", "lambda", "layers", "weight-decay"):
        trials = EXPERIMENTS[name].trials(make_setup(model))
        settings = {(trial.n_edits, trial.relations, trial.seed) for trial in trials}
        unedited = {
            (trial.n_edits, trial.relations, trial.seed)
            for trial in trials
            if trial.editor.name == "unedited"
        }
        assert unedited == settings


@pytest.mark.parametrize(
    ("n_layers", "chosen", "expected"),
    [
        (6, (1, 2, 3), [(1, 2, 3), (2, 3, 4), (3, 4, 5), (2, 3), (1, 2), (3,), (1,)]),
        (4, (1,), [(1,), (2,), (3,)]),
        (3, (0, 1, 2), [(0, 1, 2), (1, 2), (0, 1), (2,), (0,)]),
    ],
)
def test_sets_of_layers_move_through_the_model_and_shrink(n_layers, chosen, expected):
    assert sorted(layer_sets(n_layers, chosen)) == sorted(expected)


def test_the_chosen_layers_are_among_the_sets_of_a_deep_model():
    sets = layer_sets(28, (3, 4, 5, 6, 7, 8))
    assert (3, 4, 5, 6, 7, 8) in sets
    assert (22, 23, 24, 25, 26, 27) in sets
    assert (8,) in sets
    assert len(set(sets)) == len(sets)


def test_ablations_vary_one_field_and_nothing_else(model):
    fields = {
        "weight-decay": "weight_decay",
        "layers": "critical_layers",
        "lambda": "preservation_weight",
    }
    for name, field in fields.items():
        trials = EXPERIMENTS[name].trials(make_setup(model, max_edits=50))
        configs = [
            trial.editor.config.model_dump(mode="json")
            for trial in trials
            if trial.editor.name != "unedited"
        ]
        values = {json.dumps(config.pop(field)) for config in configs}
        assert len(values) > 1, name
        assert all(config == configs[0] for config in configs), name


def test_attention_gets_the_preservation_weight_of_its_narrower_keys(model):
    trials = EXPERIMENTS["attention"].trials(make_setup(model, max_edits=50))
    weights = {
        config["module"]: config.pop("preservation_weight")
        for trial in trials
        if "module" in (config := trial.editor.config.model_dump())
    }
    assert set(weights) == {"mlp", "attention"}
    ratio = model.d_key(0, "attention") / model.d_key(0, "mlp")
    assert ratio != 1
    assert weights["attention"] == pytest.approx(weights["mlp"] * ratio)


def test_categories_are_the_relations_with_enough_cases(model):
    trials = EXPERIMENTS["categories"].trials(make_setup(model, max_edits=40))
    assert {trial.relations for trial in trials} == {("headquarters",), ("occupation",)}
    assert {trial.n_edits for trial in trials} == {40}


def test_where_no_relation_has_as_many_the_smallest_sets_the_size(model):
    trials = EXPERIMENTS["categories"].trials(make_setup(model))
    assert {trial.relations for trial in trials} == {(relation,) for relation in RELATIONS}
    assert {trial.n_edits for trial in trials} == {5}


def test_mixing_draws_both_relations_alone_and_in_equal_shares(model):
    trials = EXPERIMENTS["mixing"].trials(make_setup(model))
    groups = {trial.relations for trial in trials}
    assert groups == {
        ("occupation",), ("headquarters",), ("occupation", "headquarters"),
        ("citizenship",), ("citizenship", "occupation"),
    }  # fmt: skip
    assert {trial.seed for trial in trials} == set(range(3, 13))
    assert {trial.sample for trial in trials} == {"shuffled"}
    assert max(t.n_edits for t in trials if t.relations == ("occupation", "headquarters")) == 45


@pytest.mark.parametrize(
    ("name", "dataset", "message"),
    [
        ("categories", Nameless(), "names no relations"),
        ("mixing", Related({"hobby": 9}), "no pair of relations is known for dataset 'related'"),
    ],
)
def test_a_dataset_without_the_relations_is_refused(model, name, dataset, message):
    with pytest.raises(ConfigError, match=message):
        EXPERIMENTS[name].trials(make_setup(model, dataset))


def test_the_four_kinds_of_diversity_exist_in_the_embedded_world():
    relations = {case.request.relation for case in default_world().cases()}
    kinds = [
        (pair.subjects_alike, pair.objects_alike)
        for pair in PAIRS
        if set(pair.relations) <= relations
    ]
    assert sorted(kinds) == sorted(itertools.product((False, True), repeat=2))


def test_demonstrations_show_all_facts_and_each_relation(model, tmp_path):
    from editbench.datasets.facts import Facts

    setup = make_setup(model, Facts(FACTS_FILE, tmp_path))
    trials = EXPERIMENTS["demonstrations"].trials(setup)
    assert {(trial.relations, trial.n_edits) for trial in trials} == {
        ((), 2 * N_FACTS), ((FRESHNESS,), N_FACTS), ((DOMAIN,), N_FACTS),
    }  # fmt: skip


def test_the_shipped_demonstration_is_what_its_command_writes():
    lines = [json.dumps(fact, ensure_ascii=False) for fact in write_facts(default_world())]
    assert Path(FACTS_FILE).read_text(encoding="utf-8").splitlines() == lines


def test_the_special_domain_is_about_places_that_the_world_does_not_have():
    known = {subject.name for subject in default_world().subjects}
    for case in read_facts(FACTS_FILE):
        assert (case.request.subject in known) == (case.request.relation == FRESHNESS)


def test_lifelong_writes_batches_in_several_orders(model: EditableModel) -> None:
    trials = EXPERIMENTS["lifelong"].trials(make_setup(model))
    assert {trial.editor.name for trial in trials} == {"unedited", "memit", "rome", "ft-w"}
    assert {trial.seed for trial in trials} == {3, 4, 5}
    assert {trial.sample for trial in trials} == {"shuffled"}
    for trial in trials:
        assert (trial.n_edits, trial.batch_size) == (140, 14)
        assert trial.all_checkpoints == tuple(range(14, 141, 14))
    assert checkpoints_of(2_000, 100) == list(range(200, 2_001, 200))
    assert checkpoints_of(250, 100) == [100, 200, 250]
    assert checkpoints_of(1_050, 100) == [100, 200, 300, 400, 500, 600, 700, 800, 900, 1_050]
