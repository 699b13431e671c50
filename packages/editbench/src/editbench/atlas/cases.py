"""Facts into edit cases: what to write, and everything that judges it."""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from editbench.atlas.relations import RELATION_OF
from editbench.atlas.text import (
    Fact,
    Subject,
    pronoun_prompts,
    reversed_prompt,
    write_biography,
    write_introduction,
    write_ordinary_sentence,
)
from editbench.portability import Hop, PortabilityProbe, Query
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
    facts_behind: Mapping[str, Sequence[Fact]],
    *,
    seed: int,
    split: Split,
) -> list[EditCase]:
    """Build one case for each edited subject.

    Args:
        edited: Whom to edit, in order; a case does not depend on those after it.
        bystanders: Whom no case edits: neighbors and reference texts come from them.
        facts_of: The facts of each subject, by name.
        facts_behind: The facts that a prompt from an object to a first name may mean.
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
        name = f"{prefix}-{index:05d}"
        cases.append(_build_case(name, fact, new, holders, facts_of, facts_behind, rng))
    return cases


def build_training_cases(
    bystanders: Sequence[Subject],
    facts_of: Mapping[str, Sequence[Fact]],
    facts_behind: Mapping[str, Sequence[Fact]],
    *,
    seed: int,
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
        name = f"atlas-training-{index:05d}"
        cases.append(_build_case(name, fact, new, others, facts_of, facts_behind, rng))
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
    facts_behind: Mapping[str, Sequence[Fact]],
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
        portability=(
            *_probe_aliases(fact, new, rng),
            *_probe_two_hops(fact, new),
            *_probe_reversed(fact, new, facts_behind),
        ),
    )


def _probe_aliases(fact: Fact, new: str, rng: random.Random) -> Iterator[PortabilityProbe]:
    """Ask where a pronoun stands for the subject, and under its other name."""
    introduction = write_introduction(fact.subject).text
    prompts = [f"{introduction} {prompt}" for prompt in pronoun_prompts(fact)]
    if fact.subject.alias is not None:
        prompts.append(fact.prompt(rng.choice(fact.trained), name=fact.subject.alias))
    for prompt in prompts:
        # What the model must know is what it says there of the unedited world.
        known = Query(prompt, (fact.object,))
        yield PortabilityProbe("aliasing", (Query(prompt, (new,)),), conditions=(known,))


def _probe_two_hops(fact: Fact, new: str) -> Iterator[PortabilityProbe]:
    """Ask for what is true of the subject's object: the edit changes it, but where both agree."""
    for inference in RELATION_OF[fact.relation].inferences:
        before, after = inference.answers[fact.object], inference.answers[new]
        if before == after:
            continue
        prompt = inference.phrasing.format(fact.subject.name)
        yield PortabilityProbe(
            "multi_hop",
            (Query(prompt, (after,)),),
            conditions=(
                Query(prompt, (before,)),
                Query(inference.statement.format(new), (after,)),
            ),
            hops=(
                Hop(fact.subject.name, fact.relation, new, is_edited=True),
                Hop(new, inference.name, after, is_edited=False),
            ),
        )


def _probe_reversed(
    fact: Fact, new: str, facts_behind: Mapping[str, Sequence[Fact]]
) -> Iterator[PortabilityProbe]:
    """Ask from the new object to the subject, where its first name settles who is meant."""
    if RELATION_OF[fact.relation].reversed_phrasing is None:
        return
    before, answer = reversed_prompt(fact)
    after, _ = reversed_prompt(fact, of=new)
    if len(facts_behind[before]) == 1 and after not in facts_behind:
        yield PortabilityProbe(
            "reversal", (Query(after, (answer,)),), conditions=(Query(before, (answer,)),)
        )
