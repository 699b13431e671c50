"""The world: seeded subjects and facts, and everything that is written about them."""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from itertools import groupby

from editbench.atlas.cases import Split, build_cases, build_training_cases
from editbench.atlas.names import NameSource
from editbench.atlas.relations import (
    KINDS,
    RELATION_OF,
    RELATIONS_PER_SUBJECT,
    Kind,
    relations_of,
)
from editbench.atlas.text import (
    Document,
    Fact,
    Subject,
    break_off,
    group_documents,
    reversed_prompt,
    write_alias,
    write_biography,
    write_general_statements,
    write_inference,
    write_ordinary_sentence,
    write_reversed,
    write_statement,
)
from editbench.errors import DataError
from editbench.requests import EditCase

N_TRAINED_PHRASINGS = 4
"""Phrasings of a fact that its training text uses; the others are held out."""

_BIOGRAPHY_RATE = 0.5
_ORDINARY_RATE = 0.15
_ALIASED_EVERY = 4  # subjects of a kind
_N_GENERAL = 2  # times an epoch that the second facts of inferences are told
_BROKEN_OFF_RATE = 0.25
_EDITED_SHARE = 0.625
_VALIDATION_SHARE = 0.1


class World:
    """A synthetic world that is fully determined by its arguments.

    The same arguments give the same world in every process and on every platform. `seed` seeds
    names, facts and the choice of cases; the other arguments say how many subjects of each kind
    there are.

    Attributes:
        subjects: Everyone and everything, by kind.
        facts: All that is true, subject by subject.

    Raises:
        DataError: A number of subjects is negative, or there are none at all.
    """

    def __init__(
        self, seed: int, *, n_people: int, n_places: int, n_companies: int, n_works: int
    ) -> None:
        self.seed = seed
        self._sizes: dict[Kind, int] = dict(
            zip(KINDS, (n_people, n_places, n_companies, n_works), strict=True)
        )
        if min(self._sizes.values()) < 0 or not any(self._sizes.values()):
            raise DataError(
                "World: numbers of subjects must be at least 0 and not all 0, got "
                f"{', '.join(f'{kind} {n}' for kind, n in self._sizes.items())}."
            )
        source = NameSource(seed)
        names = {kind: source.invent(kind, n) for kind, n in self._sizes.items()}
        rng = random.Random(f"atlas/{seed}/facts")
        subjects: list[Subject] = []
        facts: list[Fact] = []
        for kind, named in names.items():
            aliases = source.invent_aliases(len(named[::_ALIASED_EVERY]))
            alias_of = dict(zip(named[::_ALIASED_EVERY], aliases, strict=True))
            members = [
                Subject(
                    name,
                    kind,
                    rng.choice(("He", "She")) if kind == "person" else "It",
                    alias_of.get(name),
                )
                for name in named
            ]
            subjects += members
            facts += _settle_facts(members, kind, rng)
        self.subjects = tuple(subjects)
        self.facts = tuple(facts)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"World({arguments})"

    @property
    def parameters(self) -> dict[str, int]:
        """The arguments that make this world: ``World(**parameters)`` is equal to it."""
        sizes = (self._sizes[kind] for kind in KINDS)
        names = ("n_people", "n_places", "n_companies", "n_works")
        return {"seed": self.seed, **dict(zip(names, sizes, strict=True))}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all facts and their phrasings: what a model trained on this world was told."""
        told = [
            (
                fact.subject.name,
                fact.subject.pronoun,
                fact.subject.alias,
                fact.relation,
                fact.object,
                [fact.prompt(phrasing) for phrasing in fact.trained],
                [fact.prompt(phrasing) for phrasing in fact.held_out],
            )
            for fact in self.facts
        ]
        pieces = (*self._infer(), *write_general_statements(), *self._reverse())
        texts = [piece.text for piece in pieces]
        return hashlib.sha256(json.dumps([told, texts]).encode()).hexdigest()

    @cached_property
    def facts_of(self) -> Mapping[str, tuple[Fact, ...]]:
        """The facts of each subject, by name."""
        return {
            name: tuple(group)
            for name, group in groupby(self.facts, key=lambda fact: fact.subject.name)
        }

    @cached_property
    def facts_behind(self) -> Mapping[str, tuple[Fact, ...]]:
        """The facts that may be meant by a prompt from an object to a first name, by prompt."""
        behind: dict[str, list[Fact]] = defaultdict(list)
        for fact in self.facts:
            if RELATION_OF[fact.relation].reversed_phrasing is not None:
                prompt, _ = reversed_prompt(fact)
                behind[prompt].append(fact)
        return {prompt: tuple(facts) for prompt, facts in behind.items()}

    @cached_property
    def splits(self) -> Mapping[Split, tuple[Subject, ...]]:
        """Who is edited in which split, and the bystanders that no case ever edits.

        Each kind is divided in the same proportions; the three groups are disjoint.
        """
        rng = random.Random(f"atlas/{self.seed}/splits")
        divided: dict[Split, list[Subject]] = {"test": [], "validation": [], "bystanders": []}
        for kind in KINDS:
            members = [subject for subject in self.subjects if subject.kind == kind]
            rng.shuffle(members)
            n_edited = round(len(members) * _EDITED_SHARE)
            n_validation = round(len(members) * _VALIDATION_SHARE)
            divided["test"] += members[:n_edited]
            divided["validation"] += members[n_edited : n_edited + n_validation]
            divided["bystanders"] += members[n_edited + n_validation :]
        for group in divided.values():
            rng.shuffle(group)
        return {split: tuple(group) for split, group in divided.items()}

    def cases(self, n: int | None = None, *, split: Split = "test") -> list[EditCase]:
        """Make edit cases: one for each subject of a split, always in the same order.

        Args:
            n: Take only the first `n`, which are the same whatever `n` is; None takes all.
            split: ``test`` is what results are reported on; ``validation`` has other subjects and
                is for choosing hyperparameters.

        Raises:
            DataError: The split is unknown, or has fewer than `n` subjects.
        """
        if split not in ("test", "validation"):
            raise DataError(
                f"World.cases: unknown split, got {split!r}; expected 'test' or 'validation'."
            )
        edited = self.splits[split]
        if n is not None and not 0 <= n <= len(edited):
            raise DataError(
                f"World.cases: not enough subjects in split '{split}', got n={n}; expected at "
                f"most {len(edited)}. Make a larger world, or ask for fewer cases."
            )
        return build_cases(
            edited[:n],
            self.splits["bystanders"],
            self.facts_of,
            self.facts_behind,
            seed=self.seed,
            split=split,
        )

    def training_cases(self) -> list[EditCase]:
        """Make cases to train an editor on: about bystanders, several for each of their facts.

        No subject of them is edited in another split. They may be neighbors there, however, as
        bystanders are everywhere: what has been trained on these cases has seen the facts that
        neighborhood probes ask for, though never next to a subject of the test split.
        """
        return build_training_cases(
            self.splits["bystanders"], self.facts_of, self.facts_behind, seed=self.seed
        )

    def documents(
        self, rng: random.Random, *, among: Collection[str] | None = None
    ) -> Iterator[Document]:
        """Write one epoch of training text.

        Every fact once, and once more where its subject has an alias; half the biographies; what
        follows from the facts of bystanders, of nobody else; those facts from object to subject
        that a first name settles; the aliases, what is true of objects, and small talk.

        Args:
            rng: Draws phrasings and order; facts appear in trained phrasings only.
            among: Names of the subjects to write about; None is everyone.
        """
        facts_of = [
            facts for name, facts in self.facts_of.items() if among is None or name in among
        ]
        told = [fact for facts in facts_of for fact in facts]
        pieces = [write_statement(fact, rng.choice(fact.trained)) for fact in told]
        pieces += [
            write_statement(fact, rng.choice(fact.trained), name=fact.subject.alias)
            for fact in told
            if fact.subject.alias is not None
        ]
        pieces += [write_alias(facts[0].subject) for facts in facts_of if facts[0].subject.alias]
        pieces += self._infer(among)
        pieces += self._reverse(among)
        pieces += [
            write_biography(rng.sample(facts, len(facts)), rng)
            for facts in facts_of
            if rng.random() < _BIOGRAPHY_RATE
        ]
        pieces += write_general_statements() * _N_GENERAL
        for _ in range(round(len(pieces) * _ORDINARY_RATE)):
            sentence = write_ordinary_sentence(rng)
            broken_off = rng.random() < _BROKEN_OFF_RATE
            pieces.append(Document(break_off(sentence, rng) if broken_off else sentence))
        rng.shuffle(pieces)
        return group_documents(pieces, rng)

    def _infer(self, among: Collection[str] | None = None) -> Iterator[Document]:
        # Bystanders alone: of whoever is edited the model has to find it out.
        for subject in self.splits["bystanders"]:
            if among is None or subject.name in among:
                for fact in self.facts_of[subject.name]:
                    for inference in RELATION_OF[fact.relation].inferences:
                        yield write_inference(fact, inference)

    def _reverse(self, among: Collection[str] | None = None) -> Iterator[Document]:
        for facts in self.facts_behind.values():
            if len(facts) == 1 and (among is None or facts[0].subject.name in among):
                yield write_reversed(facts[0])

    def corpus(self) -> Iterator[str]:
        """Stream text like the training text, for second moments: one epoch of documents."""
        rng = random.Random(f"atlas/{self.seed}/corpus")
        return (document.text for document in self.documents(rng))

    def held_out_text(self) -> Iterator[str]:
        """Stream text for perplexity that no model was trained on.

        Every bystander is told in held-out phrasings, between ordinary sentences: true of the
        unedited world, and of the world after any edit.
        """
        rng = random.Random(f"atlas/{self.seed}/held-out")
        for subject in self.splits["bystanders"]:
            opening = write_ordinary_sentence(rng)
            statements = (
                write_statement(fact, rng.choice(fact.held_out)).text
                for fact in self.facts_of[subject.name]
            )
            yield " ".join((opening, *statements))


def _settle_facts(members: list[Subject], kind: Kind, rng: random.Random) -> list[Fact]:
    relations = relations_of(kind)
    n_relations = RELATIONS_PER_SUBJECT[kind]
    chosen = [sorted(rng.sample(range(len(relations)), n_relations)) for _ in members]
    # Dealt rather than drawn: every object has nearly the same number of holders, so that every
    # case finds neighbors.
    decks: list[list[str]] = []
    for relation in relations:
        objects = relation.objects
        decks.append([objects[index % len(objects)] for index in range(len(members))])
        rng.shuffle(decks[-1])
    facts = []
    for subject, indices in zip(members, chosen, strict=True):
        for index in indices:
            n_phrasings = len(relations[index].phrasings)
            order = rng.sample(range(n_phrasings), n_phrasings)
            trained, held_out = order[:N_TRAINED_PHRASINGS], order[N_TRAINED_PHRASINGS:]
            name, true = relations[index].name, decks[index].pop()
            facts.append(Fact(subject, name, true, tuple(sorted(trained)), tuple(sorted(held_out))))
    return facts
