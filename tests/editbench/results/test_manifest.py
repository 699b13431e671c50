import pytest

from editbench.results.manifest import RunManifest


@pytest.mark.parametrize(
    "change",
    [
        {"editor": "rome"},
        {"config": {"n_steps": 21}},
        {"model_fingerprint": "f2"},
        {"dataset": "other"},
        {"dataset_fingerprint": "d2"},
        {"n_edits": 3},
        {"seed": 1},
        {"sample": "shuffled"},
        {"on_conflict": "drop-all"},
        {"metrics": {"success": 2}},
        {"inputs": {"second_moments": "hash"}},
        {"versions": {"torch": "2"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_trial_is_addressed_by_everything_its_rows_depend_on(describe, change):
    assert describe(**change).hash != describe().hash


def test_what_the_model_is_called_does_not_matter(describe):
    assert describe(model="./gpt2").hash == describe(model="/home/me/gpt2").hash


def test_the_order_of_a_configuration_does_not_matter(describe):
    one, other = describe(config={"a": 1, "b": 2}), describe(config={"b": 2, "a": 1})
    assert one.hash == other.hash
    assert len(one.hash) == 16


def test_a_manifest_survives_its_file(plan, describe):
    manifest = plan(describe(), describe(seed=1))
    assert RunManifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_differences_name_the_fields_that_differ(plan, describe):
    stored = plan(describe(seed=0), describe(seed=1))
    assert stored.differences(plan(describe(seed=1), describe(seed=0, model="./elsewhere"))) == []
    changed = plan(describe(seed=0, config={"n_steps": 9}), describe(seed=1, n_edits=5))
    assert stored.differences(changed) == [
        "memit.n_steps: got 20 | 9; expected 20",
        "n_edits: got 2 | 5; expected 2",
    ]
    added = plan(*stored.trials.values(), describe(editor="rome", config={}))
    assert stored.differences(added) == ['editor: got "memit" | "rome"; expected "memit"']


def test_a_smaller_grid_of_the_same_values_differs_too(plan, describe):
    stored = plan(*(describe(seed=seed, n_edits=n) for seed in (0, 1) for n in (1, 2)))
    fewer = plan(describe(seed=0, n_edits=1), describe(seed=1, n_edits=2))
    assert stored.differences(fewer) == ["trials: got 2; expected 4"]
