"""Facts into edit cases: what to write, and everything that judges it."""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from editbench.atlas.relations import RELATION_OF
from editbench.atlas.text import (
    Fact,
    Subject,
    pronoun_prompts,
    write_biography,
    write_introduction,
    write_ordinary_sentence,
)
from editbench.portability import PortabilityProbe, Query
from editbench.requests import EditCase, EditRequest, Probe

Split = Literal["test", "validation", "bystanders"]

N_PARAPHRASES = 2
N_TRAINING_TARGETS = 4
MAX_NEIGHBORS = 10
MAX_REFERENCE_TEXTS = 5


def build_cases(
    edited: Sequence[Subject],
    bystanders: Sequence[Subject],
    facts_of: Mapping[str, Sequence[Fact]],
    *,
    seed: int,
    split: Split,
) -> list[EditCase]:
    """Build one case for each edited subject.

    Args:
        edited: Whom to edit, in order; a case does not depend on those after it.
        bystanders: Whom no case edits: neighbors and reference texts come from them.
        facts_of: The facts of each subject, by name.
        seed: The world's.
        split: Names the cases, and separates their draws from those of another split.
    """
    holders = _find_holders(fact for subject in bystanders for fact in facts_of[subject.name])
    prefix = "atlas" if split == "test" else f"atlas-{split}"
    cases = []
    for index, subject in enumerate(edited):
        rng = random.Random(f"atlas/{seed}/cases/{split}/{index}")
        fact = rng.choice(facts_of[subject.name])
        new = rng.choice(_other_objects(fact))
        cases.append(_build_case(f"{prefix}-{index:05d}", fact, new, holders, facts_of, rng))
    return cases


def build_training_cases(
    bystanders: Sequence[Subject], facts_of: Mapping[str, Sequence[Fact]], *, seed: int
) -> list[EditCase]:
    """Build cases to train an editor on: `N_TRAINING_TARGETS` for every fact of every bystander.

    Cases about one fact contradict each other, so that they are not all to be written at once.
    Neighbors and reference texts come from the other bystanders; a fact that has no neighbor is
    left out.
    """
    facts = [fact for subject in bystanders for fact in facts_of[subject.name]]
    holders = _find_holders(facts)
    rng = random.Random(f"atlas/{seed}/cases/training")
    drawn = []
    for fact in facts:
        if len(holders[fact.relation, fact.object]) < 2:
            continue
        objects = _other_objects(fact)
        targets = rng.sample(objects, min(N_TRAINING_TARGETS, len(objects)))
        drawn += [(fact, target) for target in targets]
    rng.shuffle(drawn)
    cases = []
    for index, (fact, new) in enumerate(drawn):
        place = (fact.relation, fact.object)
        others = {**holders, place: [other for other in holders[place] if other is not fact]}
        rng = random.Random(f"atlas/{seed}/cases/training/{index}")
        cases.append(_build_case(f"atlas-training-{index:05d}", fact, new, others, facts_of, rng))
    return cases


def _find_holders(facts: Iterable[Fact]) -> dict[tuple[str, str], list[Fact]]:
    """Facts by their relation and object."""
    holders: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in facts:
        holders[fact.relation, fact.object].append(fact)
    return holders


def _other_objects(fact: Fact) -> list[str]:
    return [other for other in RELATION_OF[fact.relation].objects if other != fact.object]


def _build_case(
    case_id: str,
    fact: Fact,
    new: str,
    holders: Mapping[tuple[str, str], list[Fact]],
    facts_of: Mapping[str, Sequence[Fact]],
    rng: random.Random,
) -> EditCase:
    relation = RELATION_OF[fact.relation]
    phrasing = rng.choice(fact.trained)
    request = EditRequest(
        case_id=case_id,
        subject=fact.subject.name,
        prompt=relation.phrasings[phrasing],
        target=new,
        relation=fact.relation,
    )
    probes = [Probe("efficacy", request.text, expected=new, alternative=fact.object)]
    # In phrasings held out of training, every other one after small talk.
    for index, held_out in enumerate(rng.sample(fact.held_out, N_PARAPHRASES)):
        small_talk = f"{write_ordinary_sentence(rng)} " if index % 2 else ""
        prompt = f"{small_talk}{fact.prompt(held_out)}"
        probes.append(Probe("paraphrase", prompt, expected=new, alternative=fact.object))
    neighbors = holders.get((fact.relation, fact.object), [])
    for neighbor in rng.sample(neighbors, min(MAX_NEIGHBORS, len(neighbors))):
        prompt = neighbor.prompt(rng.choice(neighbor.trained))
        probes.append(Probe("neighborhood", prompt, expected=fact.object, alternative=new))
    models = holders.get((fact.relation, new), [])
    subject = fact.subject
    introduction = write_introduction(subject).text
    references = [f"{introduction} {prompt}" for prompt in pronoun_prompts(fact)]
    return EditCase(
        request=request,
        target_true=fact.object,
        probes=tuple(probes),
        generation_prompts=(
            subject.name,
            f"{introduction} {subject.pronoun}",
            f"{write_ordinary_sentence(rng)} {subject.name}",
        ),
        reference_texts=tuple(
            write_biography(facts_of[model.subject.name], rng).text
            for model in rng.sample(models, min(MAX_REFERENCE_TEXTS, len(models)))
        ),
        # What the model must know is what it says there of the unedited world.
        portability=tuple(
            PortabilityProbe(
                "aliasing",
                (Query(prompt, (new,)),),
                conditions=(Query(prompt, (fact.object,)),),
            )
            for prompt in references
        ),
    )
