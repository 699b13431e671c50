"""Facts for demonstrations of editing: what has changed in the world, and what was never in it.

``python -m editbench.atlas.demonstrations`` writes them to ``demonstrations.jsonl`` beside this
file, which is what ``editbench reproduce demonstrations`` edits when it is given nothing else.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from editbench.atlas.names import NameSource
from editbench.atlas.relations import RELATION_OF, Relation
from editbench.atlas.text import Fact
from editbench.atlas.world import World

FACTS_FILE = Path(__file__).with_name("demonstrations.jsonl")

N_FACTS = 40
"""Facts of each demonstration."""

FRESHNESS = "occupation"
"""Relation of the first: people whom the model knows have changed their job."""

DOMAIN = "export"
"""Relation of the second: places that the model has never heard of."""

_NEW_NAMES_SEED = 1_000_003
_N_NEIGHBORS = 5


def write_facts(world: World) -> Iterator[dict[str, Any]]:
    """Make both demonstrations' facts, as lines of a facts file.

    Args:
        world: The world that the model knows. People of the test split change their job; neighbors
            are bystanders.
    """
    rng = random.Random(f"atlas/{world.seed}/demonstrations")
    tested = {subject.name for subject in world.splits["test"]}
    bystanders = {subject.name for subject in world.splits["bystanders"]}
    changed = [fact for fact in world.facts if fact.relation == FRESHNESS]
    for fact in rng.sample([f for f in changed if f.subject.name in tested], N_FACTS):
        relation = RELATION_OF[FRESHNESS]
        new = rng.choice([job for job in relation.objects if job != fact.object])
        yield _describe(relation, fact.subject.name, new, fact.object, world, bystanders, rng)
    known = {subject.name for subject in world.subjects}
    relation = RELATION_OF[DOMAIN]
    invented = NameSource(_NEW_NAMES_SEED).invent("place", 2 * N_FACTS)
    for subject in [name for name in invented if name not in known][:N_FACTS]:
        export, alternative = rng.sample(relation.objects, 2)
        yield _describe(relation, subject, export, alternative, world, bystanders, rng)


def _describe(
    relation: Relation,
    subject: str,
    new: str,
    old: str,
    world: World,
    bystanders: set[str],
    rng: random.Random,
) -> dict[str, Any]:
    wordings = rng.sample(relation.phrasings, 3)
    holders: list[Fact] = [
        fact
        for fact in world.facts
        if (fact.relation, fact.object) == (relation.name, old) and fact.subject.name in bystanders
    ]
    return {
        "subject": subject,
        "prompt": wordings[0],
        "target": new,
        "target_true": old,
        "relation": relation.name,
        "case_id": f"{relation.name}-{subject}",
        "paraphrases": wordings[1:],
        "neighbors": [
            {"prompt": fact.prompt(fact.trained[0]), "target": old}
            for fact in rng.sample(holders, min(_N_NEIGHBORS, len(holders)))
        ],
        "generation_prompts": ["{}"],
    }


def main() -> None:
    """Write the facts file that ships."""
    from editbench.atlas import default_world

    lines = [json.dumps(fact, ensure_ascii=False) for fact in write_facts(default_world())]
    FACTS_FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
