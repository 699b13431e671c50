"""Which cases a trial edits."""

from collections.abc import Sequence

import pytest
from tests.editbench.runner.toys import Toy, make_grid

from editbench.errors import ConfigError, RequestError
from editbench.metrics.probes import Success
from editbench.requests import EditCase, EditRequest, Probe
from editbench.runner import run_grid, select_batches
from editbench.testing import toy_cases


def ids(cases: Sequence[EditCase]) -> list[str]:
    return [case.request.case_id for case in cases]


def test_cases_are_the_first_ones_whatever_the_seed():
    for seed in (0, 1):
        (chosen,), _ = select_batches(
            toy_cases(12), 3, sample="first", seed=seed, on_conflict="error"
        )
        assert ids(chosen) == ["0", "1", "2"]


def test_shuffled_cases_are_drawn_with_the_seed_and_nest():
    def draw(n: int, seed: int) -> list[str]:
        (chosen,), _ = select_batches(
            toy_cases(12), n, sample="shuffled", seed=seed, on_conflict="error"
        )
        return ids(chosen)

    assert draw(12, 0) == draw(12, 0) != draw(12, 1)
    assert draw(5, 0) == draw(12, 0)[:5]
    assert sorted(draw(12, 1), key=int) == [str(index) for index in range(12)]


def conflicting_cases() -> list[EditCase]:
    facts = [("Ana", "poet"), ("Bo", "pilot"), ("Ana", "judge"), ("Cy", "baker")]
    return [
        EditCase(
            EditRequest(str(index), subject, "{} is a", target),
            probes=(Probe("efficacy", f"{subject} is a", target, "thief"),),
        )
        for index, (subject, target) in enumerate(facts)
    ]


@pytest.mark.parametrize(
    ("policy", "n", "expected"),
    [("drop-all", 2, ["1", "3"]), ("keep-first", 3, ["0", "1", "3"]), ("error", 2, ["0", "1"])],
)
def test_a_conflict_policy_leaves_as_many_cases_as_were_asked_for(policy, n, expected):
    (chosen,), conflicts = select_batches(
        conflicting_cases(), n, sample="first", seed=0, on_conflict=policy
    )
    assert ids(chosen) == expected
    assert len(conflicts) == (policy != "error")


def test_conflicts_among_the_chosen_cases_are_an_error_by_default(model, tmp_path):
    trials = make_grid(model, n_edits=[3], dataset=Toy(conflicting_cases()), metrics=[Success()])
    with pytest.raises(RequestError, match=r"'poet' .* 'judge'"):
        run_grid(trials, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("policy", "message"),
    [("error", "n_edits 9; expected at most 4. "), ("drop-all", "at most 2 besides 2 dropped")],
)
def test_more_edits_than_cases_is_an_error_that_says_how_many_there_are(
    model, tmp_path, policy, message
):
    trials = make_grid(
        model,
        n_edits=[1, 9],
        dataset=Toy(conflicting_cases()),
        metrics=[Success()],
        on_conflict=policy,
    )
    with pytest.raises(ConfigError, match=message):
        run_grid(trials, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_at_least_one_edit():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        select_batches(toy_cases(2), 0, sample="first", seed=0, on_conflict="error")


def related_cases() -> list[EditCase]:
    return [
        EditCase(
            EditRequest(f"{relation}{index}", f"Ana{index}", "{} is a", "poet", relation),
            probes=(Probe("efficacy", f"Ana{index} is a", "poet", "thief"),),
        )
        for relation, n in (("job", 4), ("town", 2), ("sport", 3))
        for index in range(n)
    ]


def test_batches_are_consecutive_and_share_no_case():
    batches, _ = select_batches(
        toy_cases(12), 3, n_batches=4, sample="first", seed=0, on_conflict="error"
    )
    assert [ids(batch) for batch in batches] == [
        ["0", "1", "2"], ["3", "4", "5"], ["6", "7", "8"], ["9", "10", "11"],
    ]  # fmt: skip


def test_only_conflicts_within_a_batch_are_conflicts():
    batches, _ = select_batches(
        conflicting_cases(), 2, n_batches=2, sample="first", seed=0, on_conflict="error"
    )
    assert [ids(batch) for batch in batches] == [["0", "1"], ["2", "3"]]


@pytest.mark.parametrize(
    ("relations", "n", "expected"),
    [
        (("town",), 2, ["town0", "town1"]),
        (("sport", "job"), 5, ["sport0", "job0", "sport1", "job1", "sport2"]),
    ],
)
def test_relations_are_taken_in_turns(relations, n, expected):
    (chosen,), _ = select_batches(
        related_cases(), n, relations=relations, sample="first", seed=0, on_conflict="error"
    )
    assert ids(chosen) == expected


@pytest.mark.parametrize(
    ("relations", "n", "n_batches", "message"),
    [
        (("job", "town"), 5, 1, "expected at most 4 of job and town in equal shares"),
        (("age",), 1, 1, "got 'age'; expected one of job, sport, town"),
        ((), 5, 2, "n_edits 5 in 2 batches; expected at most 9"),
        ((), 5, 0, "n_batches must be at least 1, got 0"),
    ],
)
def test_a_selection_that_is_not_there_is_an_error(relations, n, n_batches, message):
    with pytest.raises(ConfigError, match=message):
        select_batches(
            related_cases(), n, n_batches=n_batches, relations=relations,
            sample="first", seed=0, on_conflict="error",
        )  # fmt: skip
