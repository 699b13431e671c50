"""Averages over prompts, and the range of layers that follows from them."""

import csv
import io
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from editbench.edits.weight_edit import WeightEdit
from editbench.errors import TraceError
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest
from editbench.tracing.effects import average_effects, token_roles
from editbench.tracing.facts import KnownFact
from editbench.tracing.suggestion import (
    Suggestion,
    suggest_from_traces,
    suggest_layers,
    suggest_range,
)
from editbench.tracing.tables import write_effects_csv, write_effects_json
from editbench.tracing.tracer import Tracer
from editbench.tracing.traces import PromptTrace

MakeTrace = Callable[..., PromptTrace]
ALL = {"first_subject": range(1, 2), "last_subject": range(2, 3)}


class TestRoles:
    @pytest.mark.parametrize(
        ("n_tokens", "subject", "expected"),
        [
            (
                8,
                range(1, 4),
                {
                    "first_subject": [1], "middle_subject": [2], "last_subject": [3],
                    "first_subsequent": [4], "further": [5, 6], "last": [7],
                },
            ),
            (
                4,
                range(1),
                {
                    "first_subject": [0], "last_subject": [0], "first_subsequent": [1],
                    "further": [2], "last": [3],
                },
            ),
            (
                3,
                range(2),
                {"first_subject": [0], "last_subject": [1], "first_subsequent": [2], "last": [2]},
            ),
            (2, range(2), {"first_subject": [0], "last_subject": [1], "last": [1]}),
        ],
    )  # fmt: skip
    def test_of_prompts(self, n_tokens, subject, expected) -> None:
        roles = token_roles(n_tokens, subject)
        assert {role: list(tokens) for role, tokens in roles.items()} == expected


class TestAverages:
    def test_prompts_weigh_the_same(self, make_trace: MakeTrace) -> None:
        one = make_trace([0.2, 0.4], [0.0, 0.1], low=0.1)
        other = make_trace([0.6, 0.4], [0.0, 0.3], low=0.3, subject=range(1, 5), n_tokens=7)
        other.scores["hidden"][2] = [0.4, 0.5]  # one of two middle tokens
        effects = average_effects([one, other])
        last = effects.profile("hidden", "last_subject")
        assert [line.effect for line in last] == pytest.approx([0.4, 0.4])
        half_width = 1.96 * np.std([0.2, 0.6], ddof=1) / math.sqrt(2)
        assert last[0].ci_high - last[0].effect == pytest.approx(half_width)
        assert last[1].ci_low == pytest.approx(0.4)
        middle = effects.profile("hidden", "middle_subject")
        assert [line.effect for line in middle] == pytest.approx([0.05, 0.1])
        assert [line.n for line in middle] == [1, 1]
        assert (effects.clean.value, effects.corrupted.value) == pytest.approx((0.9, 0.2))
        assert effects.profile("mlp", "last_subject") == []
        severed = effects.profile("severed_mlp", "last_subject")
        assert [line.effect for line in severed] == pytest.approx([0.0, 0.2])

    def test_as_csv_and_json(self, make_trace: MakeTrace) -> None:
        effects = average_effects([make_trace([0.2, 0.4], [0.0, 0.1])])
        rows = list(csv.DictReader(io.StringIO(write_effects_csv(effects))))
        assert len(rows) == len(effects.lines)
        assert rows[0]["ci_low"] == ""  # one prompt says nothing about the spread
        suggestion = Suggestion((1, 2), "a rule", (0.1,), 1)
        content = json.loads(write_effects_json(effects, suggestion))
        assert content["suggested_layers"] == [1, 2]
        assert content["clean_probability"] == {
            "value": 0.9, "ci_low": None, "ci_high": None, "n": 1
        }  # fmt: skip
        assert content["effects"][0].keys() == rows[0].keys()
        assert json.loads(write_effects_json(effects, None))["suggested_layers"] is None


# At the last subject token of 60 known facts, three noise samples each.
SMOLLM2 = [
    0.018, 0.022, 0.025, 0.024, 0.032, 0.029, 0.037, 0.045, 0.052, 0.057, 0.059, 0.054, 0.061,
    0.072, 0.076, 0.080, 0.071, 0.068, 0.078, 0.080, 0.085, 0.077, 0.064, 0.008, 0.007, 0.009,
    0.009, 0.007, 0.007, 0.0,
]  # fmt: skip


class TestRule:
    @pytest.mark.parametrize(
        ("severed", "expected"),
        [
            ([0.06, 0.17, 0.42, 0.64, 0.62, 0.0], (1, 2, 3)),  # two of the embedded model
            ([0.13, 0.34, 0.69, 0.83, 0.75, 0.0], (1, 2, 3)),
            ([0.5, 0.5, 0.5, 0.0], (0,)),  # complete from the start
            ([0.0, 0.0, 0.9, 1.0, 1.0], (2,)),
            ([0.3, 0.6, 0.8, 0.7], (0, 1, 2)),  # no foot: from the bottom
            ([0.0, 0.3, 0.1, 0.5, 1.0], (3, 4)),  # behind the last foot
            ([-0.1, 0.0, 0.4, 0.9, 0.99], (2, 3)),
            (SMOLLM2, (4, 5, 6, 7, 8, 9)),  # climbs over half its depth
            ([0.1 * layer for layer in range(11)], (3, 4, 5, 6, 7, 8)),  # evenly: the first of them
        ],
    )
    def test_of_hand_made_tables(self, severed, expected) -> None:
        assert suggest_range(severed) == expected

    def test_without_any_effect(self) -> None:
        with pytest.raises(TraceError, match="no state of the last subject token has an effect"):
            suggest_range([0.0, -0.1])

    def test_from_traces(self, make_trace: MakeTrace) -> None:
        traces = [
            make_trace([0.6, 0.8, 0.8, 0.7], [0.0, 0.3, 0.7, 0.7]),
            make_trace([0.5, 0.8, 0.8, 0.7], [0.1, 0.4, 0.8, 0.7]),
        ]
        suggestion = suggest_from_traces(traces)
        assert suggestion.layers == (1, 2)
        assert suggestion.severed_effects == pytest.approx((0.05, 0.35, 0.75, 0.7))
        assert suggestion.n_prompts == 2

    def test_an_effect_that_may_be_chance(self, make_trace: MakeTrace) -> None:
        traces = [make_trace([0.9, 0.9], [0.0, 0.6]), make_trace([0.9, 0.9], [0.0, 0.0])]
        with pytest.raises(TraceError, match="cannot be told from zero"):
            suggest_from_traces(traces)

    def test_mlps_that_make_no_difference(self, make_trace: MakeTrace) -> None:
        traces = [make_trace([0.5, 0.6], [0.5, 0.6]), make_trace([0.6, 0.6], [0.6, 0.6])]
        with pytest.raises(TraceError, match="severing MLPs makes no difference"):
            suggest_from_traces(traces)

    def test_traces_without_severed_mlps(self, make_trace: MakeTrace) -> None:
        trace = make_trace([0.5], [0.5])
        del trace.scores["severed_mlp"]
        with pytest.raises(TraceError, match="lack what the rule looks at"):
            suggest_from_traces([trace])


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, make_trace: MakeTrace) -> list[str]:
    """Traces that show a site, whatever the model; the prompts that were traced."""
    traced: list[str] = []

    def trace(self: Tracer, prompt, *, only_last_subject: bool) -> PromptTrace:
        assert only_last_subject
        traced.append(prompt.fact.fact_id)
        return make_trace([0.7, 0.8, 0.8, 0.7], [0.0, 0.01 * len(traced), 0.8, 0.7])

    monkeypatch.setattr(Tracer, "trace", trace)
    return traced


class TestKeptSuggestion:
    def test_is_not_traced_again(
        self, tiny: EditableModel, tiny_facts: list[KnownFact], planted: list[str], tmp_path: Path
    ) -> None:
        options = {"n_facts": 3, "seed": 0, "cache": tmp_path}
        first = suggest_layers(tiny, tiny_facts, **options)
        assert first.layers == (2,)
        assert planted == [tiny_facts[index].fact_id for index in (0, 2, 4)]
        assert suggest_layers(tiny, tiny_facts, **options) == first
        assert len(planted) == 3
        assert not [path for path in tmp_path.rglob("*") if "tmp" in path.name]
        suggest_layers(tiny, tiny_facts, **{**options, "seed": 1})
        suggest_layers(tiny, tiny_facts[2:], **options)
        assert len(planted) == 9

    def test_that_is_damaged_is_made_anew(
        self, tiny: EditableModel, tiny_facts: list[KnownFact], planted: list[str], tmp_path: Path
    ) -> None:
        options = {"n_facts": 1, "seed": 0, "cache": tmp_path}
        first = suggest_layers(tiny, tiny_facts, **options)
        (kept,) = tmp_path.glob("critical_layers/*.json")
        kept.write_text(kept.read_text()[:-20])
        with pytest.warns(UserWarning, match="critical layers: .* computed anew"):
            assert suggest_layers(tiny, tiny_facts, **options).layers == first.layers
        assert len(planted) == 2

    def test_that_cannot_be_kept(
        self, tiny: EditableModel, tiny_facts: list[KnownFact], planted: list[str], tmp_path: Path
    ) -> None:
        (tmp_path / "critical_layers").write_text("in the way")
        with pytest.raises(TraceError, match="suggest layers: cannot write"):
            suggest_layers(tiny, tiny_facts, n_facts=1, seed=0, cache=tmp_path)

    @pytest.mark.parametrize("filled_by", ["unedited", "edited"])
    def test_is_of_the_model_with_what_is_on_it(
        self, tiny: EditableModel, tiny_facts: list[KnownFact], tmp_path: Path, filled_by: str
    ) -> None:
        edit = make_edit(tiny)

        def suggest(*, is_edited: bool, cache: Path | None) -> Suggestion:
            with edit.applied(tiny) if is_edited else nullcontext():
                return suggest_layers(tiny, tiny_facts[:1], n_facts=1, seed=0, cache=cache)

        plain = {each: suggest(is_edited=each, cache=None) for each in (False, True)}
        assert plain[False].severed_effects != plain[True].severed_effects
        order = (True, False) if filled_by == "edited" else (False, True)
        for each in (*order, *order):
            assert suggest(is_edited=each, cache=tmp_path) == plain[each]


def make_edit(model: EditableModel) -> WeightEdit:
    """One that changes the effects of a state, and not what the model says."""
    name = model.architecture.weight_name(model.architecture.mlp_projections[1])
    shape = model.model.get_parameter(name).shape
    update = 0.01 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).T
    updates = {name: update}
    requests = [EditRequest("0", "Ana Lund", "{} works as a", "poet")]
    return WeightEdit.build(model, editor="x", config={}, requests=requests, updates=updates)
