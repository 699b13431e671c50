"""Edit cases say what is true of the world, and keep apart what must not meet."""

import pytest

from editbench.atlas import World
from editbench.atlas.relations import OFFICES, RELATION_OF
from editbench.errors import DataError
from editbench.portability import Hop, PortabilityProbe
from editbench.requests import EditCase, Probe, find_conflicts


@pytest.fixture(scope="module")
def world() -> World:
    return World(2, n_people=160, n_places=80, n_companies=80, n_works=80)


@pytest.fixture(scope="module", params=["test", "validation"])
def cases(world: World, request: pytest.FixtureRequest) -> list[EditCase]:
    return world.cases(split=request.param)


def probes_of(case: EditCase, kind: str) -> list[Probe]:
    return [probe for probe in case.probes if probe.kind == kind]


def test_every_subject_of_a_split_is_edited_once(world: World, cases: list[EditCase]):
    subjects = [case.request.subject for case in cases]
    assert len(set(subjects)) == len(subjects)
    assert find_conflicts([case.request for case in cases]) == []


def test_splits_are_disjoint_and_complete(world: World):
    groups = [{subject.name for subject in group} for group in world.splits.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == len(world.subjects)
    assert {case.request.case_id for case in world.cases()}.isdisjoint(
        case.request.case_id for case in world.cases(split="validation")
    )


def test_requests_ask_for_something_false(world: World, cases: list[EditCase]):
    for case in cases:
        request = case.request
        truths = {fact.relation: fact.object for fact in world.facts_of[request.subject]}
        assert case.target_true == truths[request.relation]
        assert request.target != case.target_true
        assert request.target in RELATION_OF[request.relation].objects


def test_rewrite_probe_repeats_the_request_in_a_trained_phrasing(
    world: World, cases: list[EditCase]
):
    for case in cases:
        request = case.request
        (fact,) = (f for f in world.facts_of[request.subject] if f.relation == request.relation)
        assert probes_of(case, "efficacy") == [
            Probe("efficacy", request.text, request.target, case.target_true)
        ]
        assert request.text in [fact.prompt(phrasing) for phrasing in fact.trained]


def test_paraphrases_are_held_out_of_training(world: World, cases: list[EditCase]):
    n_after_a_sentence = 0
    for case in cases:
        request = case.request
        (fact,) = (f for f in world.facts_of[request.subject] if f.relation == request.relation)
        held_out = [fact.prompt(phrasing) for phrasing in fact.held_out]
        paraphrases = probes_of(case, "paraphrase")
        assert len(paraphrases) >= 2
        for probe in paraphrases:
            assert (probe.expected, probe.alternative) == (request.target, case.target_true)
            assert any(probe.prompt.endswith(prompt) for prompt in held_out)
            n_after_a_sentence += probe.prompt not in held_out
    assert n_after_a_sentence >= len(cases)


def test_neighbors_share_the_true_object_and_are_never_edited(world: World, cases: list[EditCase]):
    edited = {
        c.request.subject for split in ("test", "validation") for c in world.cases(split=split)
    }
    n_neighbors = 0
    for case in cases:
        relation = RELATION_OF[case.request.relation]
        prompts_of = {
            fact.prompt(phrasing): fact
            for subject in world.subjects
            for fact in world.facts_of[subject.name]
            if fact.relation == relation.name
            for phrasing in range(len(relation.phrasings))
        }
        neighbors = probes_of(case, "neighborhood")
        assert len(neighbors) <= 10
        assert len({prompts_of[probe.prompt].subject for probe in neighbors}) == len(neighbors)
        for probe in neighbors:
            fact = prompts_of[probe.prompt]
            assert fact.object == case.target_true == probe.expected
            assert probe.alternative == case.request.target
            assert fact.subject.name not in edited
            n_neighbors += 1
    assert n_neighbors > len(cases)


def test_reference_texts_are_about_others_who_have_the_new_target(
    world: World, cases: list[EditCase]
):
    assert sum(bool(case.reference_texts) for case in cases) > len(cases) / 2
    edited = {case.request.subject for case in world.cases()}
    for case in cases:
        for text in case.reference_texts:
            assert f"{case.request.target}." in text
            assert not any(name in text for name in edited)


def test_prompts_end_without_a_space_and_continuations_begin_without_one(cases: list[EditCase]):
    for case in cases:
        assert case.request.text == case.request.text.rstrip()
        assert case.generation_prompts
        assert all(prompt == prompt.rstrip() for prompt in case.generation_prompts)
        for probe in case.probes:
            assert probe.prompt == probe.prompt.rstrip()
            assert probe.expected == probe.expected.strip()
            assert probe.alternative == probe.alternative.strip()


def test_fewer_cases_are_the_first_ones(world: World):
    assert world.cases(7) == world.cases()[:7]
    assert world.cases(0) == []
    assert [case.request.case_id for case in world.cases(2)] == ["atlas-00000", "atlas-00001"]


def test_too_many_cases_are_refused(world: World):
    with pytest.raises(DataError, match="got n=9999; expected at most 250"):
        world.cases(9999)


def test_an_unknown_split_is_refused(world: World):
    with pytest.raises(DataError, match="got 'bystanders'"):
        world.cases(split="bystanders")


def test_training_cases_are_about_bystanders_alone(world: World):
    cases = world.training_cases()
    bystanders = {subject.name for subject in world.splits["bystanders"]}
    assert {case.request.subject for case in cases} <= bystanders
    assert len(cases) > 3 * len(bystanders)
    assert len({case.request.case_id for case in cases}) == len(cases)
    assert cases == world.training_cases()
    for case in cases:
        facts = {fact.relation: fact for fact in world.facts_of[case.request.subject]}
        assert case.target_true == facts[case.request.relation].object != case.request.target
        assert probes_of(case, "paraphrase")
        neighbors = probes_of(case, "neighborhood")
        assert neighbors
        assert all(case.request.subject not in probe.prompt for probe in neighbors)


def test_training_cases_differ_where_they_share_a_fact(world: World):
    asked = [
        (case.request.subject, case.request.relation, case.request.target)
        for case in world.training_cases()
    ]
    assert len(set(asked)) == len(asked)
    assert len({place[:2] for place in asked}) <= len(asked) / 3


def what_follows(case: EditCase, kind: str) -> list[PortabilityProbe]:
    return [probe for probe in case.portability if probe.kind == kind]


def test_what_follows_is_asked_under_pronouns_and_other_names(world: World, cases: list[EditCase]):
    alias_of = {subject.name: subject.alias for subject in world.subjects}
    for case in cases:
        name, wanted = case.request.subject, (case.request.target,)
        *pronouns, last = what_follows(case, "aliasing")
        if alias_of[name] is None:
            pronouns.append(last)
        else:
            assert str(alias_of[name]) in last.queries[0].prompt
            assert name not in last.queries[0].prompt
        assert len(pronouns) == 2
        for probe in pronouns:
            assert probe.queries[0].prompt.startswith(f"{name} is a ")
            assert probe.queries[0].prompt.count(name) == 1
        for probe in (*pronouns, last):
            (query,), (condition,) = probe.queries, probe.conditions
            assert query.prompt == condition.prompt
            assert (query.answers, condition.answers) == (wanted, (case.target_true,))


def test_two_hops_ask_for_what_is_true_of_the_new_object(cases: list[EditCase]):
    n_asked = 0
    for case in cases:
        request = case.request
        for probe in what_follows(case, "multi_hop"):
            (query,), (before, second) = probe.queries, probe.conditions
            assert query.prompt == before.prompt
            assert query.answers == second.answers != before.answers
            assert request.subject in query.prompt
            assert request.target in second.prompt
            edited, unedited = probe.hops
            assert edited == Hop(request.subject, str(request.relation), request.target, True)
            assert unedited.subject == request.target
            assert (unedited.target,) == query.answers
            n_asked += 1
        if request.relation == "publisher":
            (probe,) = what_follows(case, "multi_hop")
            assert probe.queries[0].answers == (OFFICES[request.target],)
            assert probe.conditions[0].answers == (OFFICES[case.target_true],)
    assert n_asked > len(cases) / 5


def test_an_answer_that_the_edit_does_not_change_is_not_asked(world: World):
    n_agree = 0
    for case in world.training_cases():
        places = {case.target_true, case.request.target}
        if places in ({"Mrovenia", "Khandroth"}, {"Thrassenia", "Thrass Islands"}):
            (probe,) = what_follows(case, "multi_hop")
            assert "capital" in probe.queries[0].prompt
            n_agree += 1
    assert n_agree


def test_the_other_direction_is_asked_where_nobody_else_can_be_meant(
    world: World, cases: list[EditCase]
):
    n_asked = 0
    for case in cases:
        request = case.request
        for probe in what_follows(case, "reversal"):
            (query,), (condition,) = probe.queries, probe.conditions
            first, last = request.subject.split()
            assert query.answers == condition.answers == (last,)
            assert query.prompt.endswith(f" {request.target} is {first}")
            assert condition.prompt.endswith(f" {case.target_true} is {first}")
            holders = {
                fact.object: [
                    other.subject.name
                    for other in world.facts
                    if (other.relation, other.object) == (request.relation, fact.object)
                    and other.subject.name.startswith(f"{first} ")
                ]
                for fact in world.facts
            }
            assert holders[case.target_true] == [request.subject]
            assert not holders.get(request.target)
            n_asked += 1
    assert n_asked
