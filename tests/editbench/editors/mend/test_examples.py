"""What is drawn from cases, and which cases cannot be trained on."""

import dataclasses
import random

import pytest

from editbench.editors.mend.examples import (
    ExampleRow,
    check_cases,
    draw_batch,
    draw_example,
    select_trainable,
)
from editbench.editors.mend.training import hold_out
from editbench.errors import ConfigError, DataError, RequestError


def without(case, kind):
    probes = tuple(probe for probe in case.probes if probe.kind != kind)
    return dataclasses.replace(case, probes=probes)


def test_cases_that_lack_a_probe_are_left_out_with_a_warning(cases) -> None:
    mixed = [without(cases[0], "paraphrase"), cases[1], without(cases[2], "neighborhood")]
    with pytest.warns(UserWarning, match="'toy': 2 of 3 cases are left out") as caught:
        assert select_trainable(mixed, "toy") == [cases[1]]
    assert "1 lack a paraphrase probe (first: '0')" in str(caught[0].message)
    assert select_trainable(cases, "toy") == cases


@pytest.mark.parametrize("kind", ["paraphrase", "neighborhood"])
def test_a_dataset_without_such_probes_is_refused(cases, kind) -> None:
    with pytest.raises(DataError, match=f"24 lack a {kind} probe"):
        select_trainable([without(case, kind) for case in cases], "toy")
    with pytest.raises(DataError, match="got 0 cases"):
        select_trainable([], "toy")


def test_no_subject_is_twice_in_a_group(cases) -> None:
    doubled = [*cases[:6], *cases[:6]]
    for seed in range(10):
        drawn = draw_batch(doubled, 12, 6, random.Random(seed))
        for group in (drawn[:6], drawn[6:]):
            subjects = [case.request.subject for case in group]
            assert len(set(subjects)) == len(subjects)
    assert len(draw_batch(cases, 10, 1, random.Random(0))) == 10


def test_an_example_asks_for_the_target_and_for_what_is_true_of_neighbors(model, cases) -> None:
    tokens, case = model.tokens, cases[0]
    prompts = set()
    for seed in range(20):
        example = draw_example(tokens, case, 3, random.Random(seed))
        (row,) = example.equivalents
        prompts.add(tokens.decode(row.token_ids[: row.start + 1]))
        assert tokens.decode(row.target_ids).strip() == case.request.target
    wanted = [case.request.text, *(p.prompt for p in case.probes if p.kind == "paraphrase")]
    assert prompts == set(wanted)
    (neighbor,) = example.neighbors
    (probe,) = (probe for probe in case.probes if probe.kind == "neighborhood")
    assert neighbor == ExampleRow.of(tokens, probe.question(probe.expected))


def test_held_out_subjects_are_not_trained_on(cases) -> None:
    kept, held_out = hold_out([*cases, *cases], 0.25, seed=0)
    assert len(held_out) == 12
    assert len(kept) == 36
    assert not {c.request.subject for c in kept} & {c.request.subject for c in held_out}
    assert hold_out(cases, 0.25, seed=0) != hold_out(cases, 0.25, seed=1)
    with pytest.raises(ConfigError, match="at least two"):
        hold_out(cases[:1], 0.5, seed=0)


def test_what_cannot_be_put_into_tokens_is_said_before_training(cases, model) -> None:
    check_cases(model.tokens, cases)
    probes = tuple(
        dataclasses.replace(probe, chat=probe.kind == "neighborhood") for probe in cases[3].probes
    )
    asked = dataclasses.replace(cases[3], probes=probes)
    with pytest.raises(RequestError, match=r"request '3': chat: .* no chat template"):
        check_cases(model.tokens, [*cases[:3], asked])


def test_what_joins_a_probe_joins_its_row(cases, model) -> None:
    joined = dataclasses.replace(
        cases[0], probes=tuple(dataclasses.replace(p, joiner="\n") for p in cases[0].probes)
    )
    example = draw_example(model.tokens, joined, 1, random.Random(0))
    (neighbor,) = example.neighbors
    assert model.tokens.decode(neighbor.target_ids).startswith("\n")
