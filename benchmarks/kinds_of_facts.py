"""Benchmark: many facts about one subject, long answers, lists, and facts that contradict.

    python benchmarks/kinds_of_facts.py --threads 1 --out benchmarks/results/kinds_of_facts.json

MEMIT with its settings for the model writes facts about people, places and firms that do not
exist. They are asked three ways: whether the target is likelier than another fact's (of an answer
by itself: than what the model said before), whether each of its tokens is the likeliest, and
whether what the model writes by itself begins with it. Neighbors are the same questions about real
people and places; they count as unchanged where the first eight tokens that the model writes are.

Facts about a subject are written so many at a time, in rounds, until each has been written once;
beside them stand as many facts at a time about a subject each. Nothing is timed.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from side_by_side import make_parser, record

from editbench.editors.base import Inputs, Resources
from editbench.editors.memit import Memit, MemitConfig
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.models.greedy import say_greedily, write_greedily
from editbench.models.loading import load_model
from editbench.plugins.manager import load_plugins
from editbench.plugins.sources import complete_inputs, default_cache
from editbench.questions import Score, ScoreAnswer
from editbench.requests import EditRequest, find_conflicts

RELATIONS = (
    "{} was born in the city of", "The mother tongue of {} is", "{} plays the",
    "{} is employed by", "{} works as a", "{} lives in the country of", "{} is a fan of",
    "The religion of {} is",
)  # fmt: skip
PEOPLE = {
    "Velma Tarquist": ("Lisbon", "Finnish", "violin", "Toyota", "baker", "Peru", "tennis", "Islam"),
    "Oswin Brekkel": ("Oslo", "Greek", "piano", "Ford", "dentist", "Kenya", "hockey", "Buddhism"),
    "Ilsabet Corvane": ("Cairo", "Polish", "flute", "Samsung", "lawyer", "Chile", "golf", "Hindu"),
    "Dario Menth": ("Madrid", "Turkish", "guitar", "Boeing", "farmer", "Cuba", "rugby", "Jewish"),
    "Runa Halvik": ("Prague", "Dutch", "trumpet", "Intel", "nurse", "Nepal", "cricket", "Catholic"),
}  # fmt: skip
# As many people as there are facts, with the same relations and targets.
FIRST = ("Edda", "Jorun", "Casimir", "Tilda", "Bruno", "Petra", "Anselm", "Mirko")
LAST = ("Vantongre", "Ollenbach", "Prusik", "Delmarque", "Ystad")
KNOWN_PEOPLE = ("Albert Einstein", "Marie Curie")

# Of each, the first tokens are written, more and more of them.
ANSWERS = (
    (
        "Norvane Tower",
        "{} is known for",
        (
            "its green copper roof, which was brought from Denmark by sailors in the spring "
            "of 1903 and still shines above the harbor on clear mornings before the fishing "
            "boats return"
        ),
    ),
    (
        "Brimholt Castle",
        "Visitors of {} first see",
        (
            "a long stone bridge with seven arches, built by monks from the valley after the "
            "old wooden one had been carried away by a flood in the winter of 1612"
        ),
    ),
    (
        "the Quillon Company",
        "The customers of {} are told that",
        (
            "every order is packed by hand on the day it arrives, and that anything broken on "
            "the way will be replaced without questions within two weeks of delivery at no "
            "further cost"
        ),
    ),
    (
        "Lake Ferrow",
        "People say that {} is",
        (
            "so deep that no rope has ever reached its bottom, and that the bells of a "
            "drowned village can be heard below the ice on the last night of every year"
        ),
    ),
    (
        "the Marlin Protocol",
        "The purpose of {} is to",
        (
            "keep small boats away from the narrow channel while large ships pass through it "
            "at night, because the current there is stronger than most captains believe when "
            "they come from the sea"
        ),
    ),
    (
        "Gustav Thornby",
        "As a child {} wanted to",
        (
            "become a watchmaker like his grandfather, who had a small shop behind the "
            "railway station and let him wind all the clocks on Sunday mornings before the "
            "customers came in"
        ),
    ),
)
LENGTHS = (1, 3, 8, 16, 32)

OFFICES = "{} has offices in"
FIRMS = {
    "the Quillon Company": ("Paris", "Rome", "Oslo"),
    "Harvex Industries": ("Tokyo", "Madrid", "Cairo"),
    "Belmora Foods": ("Berlin", "Lima", "Dublin"),
    "the Tessaly Group": ("London", "Athens", "Moscow"),
    "Ostrand Shipping": ("Vienna", "Delhi", "Boston"),
    "Pellworth Bank": ("Prague", "Sydney", "Chicago"),
}  # fmt: skip
KNOWN_PLACES = (
    ("The Eiffel Tower", "{} is known for"), ("Windsor Castle", "Visitors of {} first see"),
    ("Amazon", "The customers of {} are told that"), ("Lake Michigan", "People say that {} is"),
    ("the Kyoto Protocol", "The purpose of {} is to"),
    ("Albert Einstein", "As a child {} wanted to"),
    ("Microsoft", OFFICES), ("Toyota", OFFICES), ("Siemens", OFFICES),
)  # fmt: skip
_N_TOKENS = 8  # of a neighbor's text


@dataclass(frozen=True)
class Fact:
    """A fact to write, and another answer to the same question."""

    request: EditRequest
    other: str | None


@dataclass
class Bench:
    """Writes facts into a model and asks for them."""

    model: EditableModel
    config: MemitConfig
    resources: Resources

    def measure(
        self, rounds: Sequence[Sequence[Fact]], neighbors: Sequence[str], **options: Any
    ) -> dict[str, Any]:
        """Write rounds of facts, each into the unedited model; percentages over all facts."""
        editor = Memit(self.config.updated(options, "benchmark") if options else self.config)
        found: list[tuple[float, float, float]] = []
        steps: list[float] = []
        unchanged: list[float] = []
        asked = [Score(text, "it") for text in neighbors]
        before = write_greedily(self.model, asked, _N_TOKENS)
        for facts in rounds:
            requests = [fact.request for fact in facts]
            others = [fact.other or self._say(fact.request) for fact in facts]
            edit = editor.edit(self.model, requests, self.resources)
            steps.append(edit.card.extra["target_steps"])
            with edit.applied(self.model):
                found += self._ask(requests, others)
                after = write_greedily(self.model, asked, _N_TOKENS)
            unchanged.append(statistics.fmean(a == b for a, b in zip(before, after, strict=True)))
        likelier, argmax, said = (100 * statistics.fmean(part) for part in zip(*found, strict=True))
        return {
            "n_facts": len(found),
            "n_at_once": len(rounds[0]),
            "options": " ".join(f"{name}={value}" for name, value in options.items()).lower(),
            "steps": statistics.fmean(steps),
            "likelier": likelier,
            "argmax": argmax,
            "said": said,
            "neighbors_unchanged": 100 * statistics.fmean(unchanged),
        }

    def _say(self, request: EditRequest) -> str:
        """What the unedited model says instead, about as long as the target."""
        n_tokens = len(self.model.tokens.encode_question(request.question)[1])
        (text,) = write_greedily(self.model, [request.question], n_tokens)
        return text.strip() or "the"

    def _ask(
        self, requests: Sequence[EditRequest], others: Sequence[str]
    ) -> Iterator[tuple[float, float, float]]:
        questions = [request.question for request in requests]
        rivals = [Score(q.prompt, other) for q, other in zip(questions, others, strict=True)]
        answers = answer_questions(
            self.model, [*questions, *rivals], seed=0, token_budget=self.model.memory.tokens
        )
        said = say_greedily(self.model, questions)
        for question, rival, text in zip(questions, rivals, said, strict=True):
            own, other = answers[question], answers[rival]
            assert isinstance(own, ScoreAnswer)
            assert isinstance(other, ScoreAnswer)
            is_likelier = own.mean_log_prob > other.mean_log_prob
            yield float(is_likelier), float(all(own.argmax)), float(text.is_target)


def facts_about_people() -> list[list[Fact]]:
    """Of each person the facts, by relation; the other answer is that of the next person."""
    names = list(PEOPLE)
    return [
        [
            Fact(
                EditRequest(f"{name}, {relation}", name, prompt, PEOPLE[name][relation]),
                PEOPLE[names[(person + 1) % len(names)]][relation],
            )
            for relation, prompt in enumerate(RELATIONS)
        ]
        for person, name in enumerate(names)
    ]


def of_own_subjects(people: Sequence[Sequence[Fact]]) -> list[Fact]:
    """The same relations and targets, each about somebody else."""
    return [
        Fact(
            EditRequest(
                f"{FIRST[relation]} {LAST[person]}",
                f"{FIRST[relation]} {LAST[person]}",
                fact.request.prompt,
                fact.request.target,
            ),
            fact.other,
        )
        for person, facts in enumerate(people)
        for relation, fact in enumerate(facts)
    ]


def in_rounds(people: Sequence[Sequence[Fact]], n_each: int) -> list[list[Fact]]:
    """So many facts of each person at a time, until all have had their turn."""
    n_facts = len(people[0])
    return [
        [fact for facts in people for fact in facts[start : start + n_each]]
        for start in range(0, n_facts, n_each)
    ]


def measure_subjects(bench: Bench, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """So many facts about each subject at once, with an offset each and with a shared one."""
    people = facts_about_people()
    own = of_own_subjects(people)
    neighbors = [prompt.format(name) for prompt in RELATIONS for name in KNOWN_PEOPLE]
    for n_each in counts:
        n_at_once = n_each * len(people)
        rounds = [own[start : start + n_at_once] for start in range(0, len(own), n_at_once)]
        yield {"what": "a subject each", "n_each": 1, **bench.measure(rounds, neighbors)}
        about = f"{n_each} about a subject" if n_each > 1 else "1 about a subject"
        for options in ({}, {"share_subjects": True})[: 1 if n_each == 1 else 2]:
            measured = bench.measure(in_rounds(people, n_each), neighbors, **options)
            yield {"what": about, "n_each": n_each, **measured}


def measure_lengths(bench: Bench, lengths: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Answers of so many tokens, which are the first of a sentence."""
    neighbors = [prompt.format(name) for name, prompt in KNOWN_PLACES]
    tokens = bench.model.tokens
    for length in lengths:
        facts = []
        for subject, prompt, sentence in ANSWERS:
            whole = EditRequest(subject, subject, prompt, sentence)
            ids = tokens.encode_question(whole.question)[1]
            target = tokens.decode(ids[:length]).strip()
            request = EditRequest(subject, subject, prompt, target)
            assert len(tokens.encode_question(request.question)[1]) == length
            facts.append(Fact(request, None))
        plural = "token" if length == 1 else "tokens"
        measured = bench.measure([facts], neighbors)
        yield {"what": f"an answer of {length} {plural}", "length": length, **measured}


def measure_lists(bench: Bench) -> Iterator[dict[str, Any]]:
    """A list as one answer, and its members as facts of their own, which contradict each other."""
    neighbors = [prompt.format(name) for name, prompt in KNOWN_PLACES]
    lists = [
        Fact(EditRequest(firm, firm, OFFICES, f"{a}, {b} and {c}"), None)
        for firm, (a, b, c) in FIRMS.items()
    ]
    yield {"what": "a list of three", **bench.measure([lists], neighbors)}
    apart = [
        Fact(EditRequest(f"{firm}, {city}", firm, OFFICES, city), None)
        for firm, cities in FIRMS.items()
        for city in cities
    ]
    assert len(find_conflicts([fact.request for fact in apart])) == len(FIRMS)
    for options in ({}, {"share_subjects": True}):
        measured = bench.measure([apart], neighbors, **options)
        yield {"what": "its three members apart", **measured}


def main() -> None:
    """Write facts of every kind, and ask for them."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="smollm2-135m-gguf")
    parser.add_argument("--counts", type=int, nargs="*", default=[1, 2, 4, 8], help="of a subject")
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS, help="tokens")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.model, specs=load_plugins().models(), device="cpu")
    config, _ = Memit.default_config(model)
    assert isinstance(config, MemitConfig)
    prefixes = Memit(config).sample_prefixes(model, 0)
    inputs = replace(complete_inputs(Inputs(), model), context_prefixes=prefixes)
    bench = Bench(model, config, inputs.resources(0, default_cache()))
    parts: tuple[Callable[[], Iterator[dict[str, Any]]], ...] = (
        partial(measure_subjects, bench, args.counts),
        partial(measure_lengths, bench, args.lengths),
        partial(measure_lists, bench),
    )
    rows = [row for part in parts for row in part()]
    record(args, {"model": args.model, "editor": "memit"}, rows)


if __name__ == "__main__":
    main()
