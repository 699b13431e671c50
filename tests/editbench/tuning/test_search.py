"""The search, with an editor whose quality is known and with MEMIT itself."""

import sqlite3

import optuna
import pytest
import torch

from editbench.editors.base import Editor, EditorConfig
from editbench.editors.memit import Memit
from editbench.editors.search_space import Choices
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import ConfigError, EditError
from editbench.metrics.probes import Success
from editbench.progress import report_nothing
from editbench.runner import Inputs
from editbench.testing import tiny_model, toy_cases, toy_corpus
from editbench.tuning.bench import Bench, Problem
from editbench.tuning.comparison import compare_held_out
from editbench.tuning.facts import divide
from editbench.tuning.objective import Objective
from editbench.tuning.record import open_record
from editbench.tuning.search import Search

MODEL = tiny_model()
MEMIT = {"critical_layers": (1, 2), "n_steps": 3, "n_context_prefixes": 1}


class ShakeConfig(EditorConfig):
    size: float = 1.0
    layer: int = 1
    damage: float = 0.0


class Shake(Editor):
    """Moves a weight at random, the more the larger `size` is; fails beyond 100."""

    name = "shake"
    config_type = ShakeConfig

    def edit(self, model, requests, resources):
        if self.config.size > 100:
            raise EditError(f"shake: too large, got {self.config.size:g}.")
        name = f"transformer.h.{self.config.layer}.mlp.c_proj.weight"
        shape = model.model.get_parameter(name).T.shape
        update = self.config.size * torch.randn(shape, generator=torch.Generator().manual_seed(3))
        update += self.config.damage
        return WeightEdit.build(
            model, editor=self.name, config=self.config, requests=requests, updates={name: update}
        )


SIZES = Choices((0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0))
SPACE = {"size": SIZES, "layer": Choices((0, 1, 2, 3)), "damage": Choices((0.0, 1.0, 5.0))}


def make_problem(editor=Shake, space=SPACE, n_edits=8, max_drop=None, seed=0, **config):
    start = editor.config_type.parse({**editor.derive_defaults(MODEL), **config}, "test")
    facts = divide(toy_cases(32), n_edits, min_cases=1, seed=seed)
    objective = Objective.of("S", [Success()], facts.search, max_drop)
    inputs = Inputs(corpus=toy_corpus())
    return Problem(MODEL, editor, start, space, facts, objective, inputs, seed)


class Session:
    """A search with its record; what it told."""

    def __init__(self, folder, problem, study, on_progress):
        self.bests, self.warnings = [], []
        self.bench = Bench(problem, folder / "cache", self.warnings.append)
        self.study = study
        self.search = Search(study, self.bench, on_progress, self.bests.append)

    @property
    def tried(self):
        """What was drawn, what came of it, and how: all but times and numbers of trials."""
        return [
            (trial.user_attrs["drawn"], trial.value, trial.intermediate_values, trial.state.name)
            for trial in self.study.trials
            if "drawn" in trial.user_attrs
        ]


@pytest.fixture
def begin(tmp_path):
    """Runs a search, or goes on with the one of that name."""
    studies = {}

    def run(name, n_trials, seconds=None, on_progress=report_nothing, **options):
        problem = make_problem(**options)
        study = studies.setdefault(name, optuna.create_study(direction="maximize"))
        session = Session(tmp_path / name, problem, study, on_progress)
        session.ended = session.search.run(n_trials, seconds)
        return session

    return run


def test_it_finds_the_best_of_what_it_tried(begin):
    session = begin("one", 9)
    assert session.ended == "9 trials are done"
    values = [value for _, value, _, state in session.tried if state == "COMPLETE"]
    best = session.search.state.best
    assert best.value == max(values) > session.search.state.default.value
    assert session.tried[0][0] == {"size": 1.0, "layer": 1, "damage": 0.0}
    assert [state.best.value for state in session.bests] == sorted(
        {state.best.value for state in session.bests}
    )
    assert session.bests[-1].best == best
    measured = session.bench.measure(
        best.config, session.bench.problem.facts.search, session.bench.problem.facts.size,
        report_nothing,
    )  # fmt: skip
    unedited = session.bench.measure(
        None, session.bench.problem.facts.search, session.bench.problem.facts.size, report_nothing
    )
    assert session.bench.problem.objective.value(measured, unedited) == best.value
    assert session.study.best_trial.user_attrs["measured"] == measured.mean().round(2).to_dict()


def test_it_depends_on_the_seed_alone(begin):
    one, again, other = begin("one", 5), begin("again", 5), begin("other", 3, seed=1)
    assert one.tried == again.tried
    assert one.tried[:3] != other.tried[:3]


def test_a_search_that_was_interrupted_goes_on_as_if_it_had_not_been(begin):
    whole = begin("whole", 7)

    class Killer:
        n_seen = 0

        def __call__(self, stage, done, total, note=""):
            self.n_seen += stage == "answers"
            if self.n_seen == 9:
                raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            begin("killed", 7, on_progress=Killer())
    killed = begin("killed", 7)
    assert [trial for trial in killed.tried if trial[3] != "FAIL"] == [
        trial for trial in whole.tried if trial[3] != "FAIL"
    ]
    assert killed.search.state.best == whole.search.state.best
    numbers = [trial.number for trial in killed.study.trials]
    assert len(numbers) == len(whole.study.trials) + 2


def test_trials_that_do_badly_at_first_are_given_up(begin):
    space = {**SPACE, "size": Choices((1.0, 3.0, 10.0, 30.0)), "layer": Choices((1, 2))}
    session = begin("one", 14, space=space, n_edits=12)
    pruned = [trial for trial in session.tried if trial[3] == "PRUNED"]
    assert len(pruned) == session.search.state.n_pruned > 0
    complete = [trial for trial in session.tried if trial[3] == "COMPLETE"]
    for _, _, intermediate, _ in pruned:
        assert intermediate[0] < max(each[2][0] for each in complete)


def test_nothing_is_tried_twice(begin):
    session = begin("one", None, space={"size": Choices((0.1, 1.0)), "layer": Choices((1, 2))})
    assert session.ended == "nothing else seems to be left to try"
    assert session.search.state.n_trials == 4


def test_time_ends_it_but_for_the_default(begin):
    session = begin("one", None, seconds=1e-6)
    assert session.ended == "the time is used up"
    assert session.search.state.n_trials == 1
    assert session.search.state.best == session.search.state.default
    longer = begin("one", 3)
    assert longer.search.state.n_trials == 3


def test_specificity_has_a_floor(begin):
    free = begin("free", 8)
    held = begin("held", 8, max_drop=0.0)
    drops = [value for _, value, _, state in held.tried if state == "COMPLETE" and value < 0]
    assert drops
    assert free.search.state.best.value > 0
    assert held.search.state.best.value == max(
        value for _, value, _, state in held.tried if state == "COMPLETE"
    )


def test_what_fails_is_not_chosen(begin):
    session = begin(
        "one", 8, space={"size": Choices((0.1, 1.0, 200.0)), "layer": Choices((1, 2, 3))}
    )
    assert session.search.state.n_failed > 0
    assert any("shake: too large, got 200" in warning for warning in session.warnings)
    assert session.search.state.best.config.size < 200


def test_an_editor_that_always_fails_ends_it(begin):
    with pytest.raises(EditError, match="'shake' fails whatever is tried: shake: too large"):
        begin("one", 8, space={"size": Choices((200.0, 300.0, 400.0, 500.0))}, size=200.0)


def test_another_search_is_refused(tmp_path):
    def open_for(**options):
        return open_record(tmp_path / "search", make_problem(**options).describe())

    with open_for() as study:
        study.add_trial(optuna.create_trial(value=1.0))
    with open_for() as study:
        assert len(study.trials) == 1
        with pytest.raises(ConfigError, match="another process"), open_for():
            pass
    with pytest.raises(ConfigError, match="of a search with another seed, got 1 and 0 in "):
        open_for(seed=1).__enter__()
    with pytest.raises(ConfigError, match="another number of edits at once, got 4 and 8"):
        open_for(n_edits=4).__enter__()
    (tmp_path / "search" / "trials.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(ConfigError, match="cannot read or write the record"):
        open_for().__enter__()


def count_targets(session):
    path = session.bench.cache / "target_hidden.sqlite"
    with sqlite3.connect(path) as database:
        (n,) = database.execute("select count(*) from checked_target_hidden").fetchone()
    database.close()
    return n


def test_z_is_found_once_for_all_values_of_lambda(begin):
    space = {
        "preservation_weight": Choices((1.0, 10.0, 100.0, 1000.0), is_cheap=True),
        "learning_rate": Choices((0.1, 0.3)),
    }
    start = {"preservation_weight": 10.0, "learning_rate": 0.1}
    session = begin("one", 5, editor=Memit, space=space, **start, **MEMIT)
    rates = [drawn["learning_rate"] for drawn, *_ in session.tried]
    assert rates[:4] == [0.1] * 4
    weights = {drawn["preservation_weight"] for drawn, *_ in session.tried}
    assert len(weights) > 1
    n_facts = len(session.bench.problem.facts.search.cases())
    assert count_targets(session) == n_facts * len(set(rates))


def test_layers_below_the_last_share_z_too(begin):
    start = Memit.config_type.parse({**Memit.derive_defaults(MODEL), **MEMIT}, "test")
    layers = Memit.search_space(MODEL, start)["critical_layers"].within((1, 2, 3))
    session = begin("one", 3, editor=Memit, space={"critical_layers": layers}, **MEMIT)
    lasts = {drawn["critical_layers.last"] for drawn, *_ in session.tried}
    assert count_targets(session) == 8 * len(lasts)


def test_found_and_default_are_compared_on_other_facts(begin):
    session = begin("one", 6)
    problem = session.bench.problem
    compared = compare_held_out(session.bench, session.search.state.best.config, report_nothing)
    assert [each.symbol for each in compared] == ["S", "ES", "PS", "NS"]
    default = session.bench.measure(
        problem.start, problem.facts.held_out, problem.facts.size, report_nothing
    )
    es = compared[1].difference
    assert es.theirs == default["efficacy_success"].mean()
    assert es.value == es.ours - es.theirs
    assert es.low <= es.value <= es.high
    same = compare_held_out(session.bench, problem.start, report_nothing)
    assert all(each.difference.value == 0 for each in same)
