"""Laws that hold in a world of any seed and size."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editbench.atlas import RELATIONS, World
from editbench.atlas.names import UNUSUAL_ONSETS
from editbench.atlas.relations import (
    CAPITALS,
    COUNTRY_OF,
    RELATION_OF,
    RELATIONS_PER_SUBJECT,
    relations_of,
)
from editbench.atlas.text import (
    Subject,
    reversed_prompt,
    write_alias,
    write_inference,
    write_statement,
)
from editbench.errors import DataError

SIZES = st.fixed_dictionaries(
    {
        "n_people": st.integers(1, 60),
        "n_places": st.integers(0, 40),
        "n_companies": st.integers(0, 40),
        "n_works": st.integers(0, 40),
    }
)


@pytest.fixture(scope="module")
def world() -> World:
    return World(5, n_people=120, n_places=60, n_companies=60, n_works=60)


def test_there_are_about_a_dozen_relations_with_at_least_six_phrasings_each():
    assert 10 <= len(RELATIONS) <= 14
    for relation in RELATIONS:
        assert len(relation.phrasings) >= 6
        assert len(set(relation.phrasings)) == len(relation.phrasings)
        assert len(set(relation.objects)) == len(relation.objects) >= 8
        assert all(phrasing.count("{}") == 1 for phrasing in relation.phrasings)
        assert all(phrasing == phrasing.strip() for phrasing in relation.phrasings)
        assert all("{They}" in p or "{Their}" in p for p in relation.pronoun_phrasings)


def test_no_phrasing_serves_two_relations_of_a_kind():
    wordings = Counter((r.kind, phrasing) for r in RELATIONS for phrasing in r.phrasings)
    assert max(wordings.values()) == 1


def test_subjects_stand_at_the_start_in_the_middle_and_after_other_text():
    phrasings = [phrasing for relation in RELATIONS for phrasing in relation.phrasings]
    at_start = [phrasing for phrasing in phrasings if phrasing.startswith("{}")]
    assert len(phrasings) / 2 <= len(at_start) < len(phrasings)
    for relation in RELATIONS:
        assert any(not phrasing.startswith("{}") for phrasing in relation.phrasings)


@given(seed=st.integers(0, 10**6), sizes=SIZES)
@settings(max_examples=20, deadline=None)
def test_a_world_is_determined_by_its_parameters(seed: int, sizes: dict[str, int]):
    world = World(seed, **sizes)
    again = World(**world.parameters)
    assert again.subjects == world.subjects
    assert again.facts == world.facts
    assert again.fingerprint == world.fingerprint
    assert again.cases() == world.cases()
    assert list(again.corpus()) == list(world.corpus())


@given(seed=st.integers(0, 10**6), sizes=SIZES)
@settings(max_examples=20, deadline=None)
def test_facts_are_well_formed(seed: int, sizes: dict[str, int]):
    world = World(seed, **sizes)
    assert len({subject.name for subject in world.subjects}) == len(world.subjects)
    assert len(world.subjects) == sum(sizes.values())
    assert list(world.facts_of) == [subject.name for subject in world.subjects]
    for subject in world.subjects:
        facts = world.facts_of[subject.name]
        assert len({fact.relation for fact in facts}) == RELATIONS_PER_SUBJECT[subject.kind]
        assert len(facts) == RELATIONS_PER_SUBJECT[subject.kind]
        for fact in facts:
            relation = RELATION_OF[fact.relation]
            assert relation in relations_of(subject.kind)
            assert fact.object in relation.objects
            assert sorted(fact.trained + fact.held_out) == list(range(len(relation.phrasings)))
            assert len(fact.held_out) >= 2


def test_different_seeds_make_different_worlds(world: World):
    other = World(**{**world.parameters, "seed": 6})
    shared = {s.name for s in world.subjects} & {s.name for s in other.subjects}
    assert len(shared) < len(world.subjects) / 100
    assert other.fingerprint != world.fingerprint


def test_names_are_invented(world: World):
    for subject in world.subjects:
        assert any(onset in subject.name.lower() for onset in UNUSUAL_ONSETS)


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_phrasings_never_appear_in_the_training_text(world: World, seed: int):
    text = "\n".join(document.text for document in world.documents(random.Random(seed)))
    for fact in world.facts:
        for phrasing in fact.held_out:
            assert write_statement(fact, phrasing).text not in text
        assert any(write_statement(fact, phrasing).text in text for phrasing in fact.trained)


def test_documents_know_where_their_subjects_and_objects_are(world: World):
    inferred = {a for r in RELATIONS for each in r.inferences for a in each.answers.values()}
    last_names = {s.name.split()[1] for s in world.subjects if s.kind == "person"}
    objects = {name for relation in RELATIONS for name in relation.objects} | inferred | last_names
    documents = list(world.documents(random.Random(3)))
    assert any(len(document.mentions) > 1 for document in documents)
    assert any(not document.mentions for document in documents)
    assert any(" He " in document.text or " She " in document.text for document in documents)
    for document in documents:
        for mention in document.mentions:
            named = document.text[mention.start : mention.end]
            assert named in (mention.subject.name, mention.subject.alias)
        for start, end in document.objects:
            assert document.text[start:end] in objects
            assert document.text[start - 1] == " "
            assert document.text[end] == "."


def test_documents_can_be_about_some_subjects_only(world: World):
    chosen = {subject.name for subject in world.subjects[:10]}
    documents = list(world.documents(random.Random(0), among=chosen))
    mentioned = {m.subject.name for document in documents for m in document.mentions}
    assert mentioned == chosen


def test_one_subject_in_four_has_another_name_of_one_word(world: World):
    aliases = [subject.alias for subject in world.subjects if subject.alias is not None]
    assert len(aliases) == len(set(aliases)) == len(world.subjects) / 4
    words = {word for subject in world.subjects for word in subject.name.split()}
    assert words.isdisjoint(aliases)
    told = [document.text for document in world.documents(random.Random(0))]
    for subject in world.subjects[::40]:
        assert any(f"{subject.alias} is another name of {subject.name}." in text for text in told)
        for fact in world.facts_of[subject.name]:
            statements = [
                write_statement(fact, phrasing, name=subject.alias).text
                for phrasing in fact.trained
            ]
            assert any(statement in text for statement in statements for text in told)


def test_what_is_true_of_objects_agrees():
    for country, city in CAPITALS.items():
        assert COUNTRY_OF[city] == country
    for relation in RELATIONS:
        for inference in relation.inferences:
            assert set(inference.answers) == set(relation.objects)
            assert inference.phrasing.count("{}") == inference.statement.count("{}") == 1


def test_what_follows_is_told_of_bystanders_alone(world: World):
    told = "\n".join(document.text for document in world.documents(random.Random(0)))
    for split, subjects in world.splits.items():
        for subject in subjects:
            for fact in world.facts_of[subject.name]:
                for inference in RELATION_OF[fact.relation].inferences:
                    is_told = inference.phrasing.format(subject.name) in told
                    assert is_told == (split == "bystanders")
                    assert not is_told or write_inference(fact, inference).text in told


def test_facts_are_told_backwards_where_a_first_name_settles_who_is_meant(world: World):
    told = "\n".join(document.text for document in world.documents(random.Random(0)))
    n_told = 0
    for fact in world.facts:
        if RELATION_OF[fact.relation].reversed_phrasing is None:
            with pytest.raises(ValueError, match="is told in one direction alone"):
                reversed_prompt(fact)
            continue
        prompt, last_name = reversed_prompt(fact)
        assert f"{prompt} {last_name}".endswith(f" is {fact.subject.name}")
        namesakes = [
            other
            for other in world.facts
            if (other.relation, other.object) == (fact.relation, fact.object)
            and other.subject.name.split()[0] == fact.subject.name.split()[0]
        ]
        assert (f"{prompt} {last_name}." in told) == (len(namesakes) == 1)
        n_told += len(namesakes) == 1
    assert n_told > len(world.facts) / 10


def test_a_subject_without_another_name_is_not_said_to_have_one():
    with pytest.raises(ValueError, match="'Zha Vri' has no other name"):
        write_alias(Subject("Zha Vri", "person", "She"))


def test_held_out_text_was_never_trained(world: World):
    trained = "\n".join(world.corpus())
    bystanders = {subject.name for subject in world.splits["bystanders"]}
    passages = list(world.held_out_text())
    assert len(passages) == len(bystanders)
    for passage in passages:
        assert not any(sentence in trained for sentence in passage.split(". ")[1:-1])


def test_a_world_is_the_same_in_another_process(world: World):
    script = (
        "import json, sys; from editbench.atlas import World\n"
        f"world = World(**{world.parameters!r})\n"
        "cases = [str(case) for case in world.cases()]\n"
        "json.dump([world.fingerprint, cases, list(world.corpus())], sys.stdout)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": "4711"},
        capture_output=True,
        check=True,
        text=True,
    )
    fingerprint, cases, corpus = json.loads(ran.stdout)
    assert fingerprint == world.fingerprint
    assert cases == [str(case) for case in world.cases()]
    assert corpus == list(world.corpus())


def test_a_world_needs_no_torch():
    script = (
        "import sys; from editbench.atlas import World\n"
        "World(0, n_people=9, n_places=9, n_companies=9, n_works=9).cases()\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_world_scales_to_twenty_thousand_facts_in_seconds():
    started = time.process_time()
    world = World(0, n_people=4000, n_places=1600, n_companies=1600, n_works=1600)
    assert len(world.facts) >= 20_000
    assert len({subject.name for subject in world.subjects}) == len(world.subjects)
    assert len(world.cases(1000)) == 1000
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_people": -1, "n_places": 3, "n_companies": 3, "n_works": 3},
        {"n_people": 0, "n_places": 0, "n_companies": 0, "n_works": 0},
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, int]):
    with pytest.raises(DataError, match=f"got person {sizes['n_people']}"):
        World(0, **sizes)
