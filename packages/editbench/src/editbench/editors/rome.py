"""ROME: one fact at a time, written into one MLP exactly (Meng, Bau, Andonian, Belinkov, 2022)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from editbench.costs.stage import ExpectedCache, StageCost
from editbench.editors.base import EditorConfig, Resources
from editbench.editors.closed_form.config import LayerConfig
from editbench.editors.closed_form.dials import Dials
from editbench.editors.closed_form.editor import ClosedForm
from editbench.editors.closed_form.goals import Solved
from editbench.editors.closed_form.value_goals import ValueGoal, ValueTargets
from editbench.editors.context_prefixes import (
    ContextPrefixes,
)
from editbench.editors.dialect import (
    TARGET_NAMES,
    Dialect,
    read_fact_token,
    read_prefix_lengths,
    read_single_layer,
    refuse_input_projection,
)
from editbench.editors.keys.sweep_batches import estimate_insertion
from editbench.editors.references import cite
from editbench.editors.search_space import Choices, LayerWindow, SearchSpace, middle_layers
from editbench.editors.solve_estimates import estimate_solve
from editbench.editors.targets.batches import estimate_targets
from editbench.editors.targets.tasks import make_tasks
from editbench.edits.files import Update
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest
from memit_core import UpdateFactors


def _read_prefixes(value: Any, _values: Mapping[str, Any]) -> Mapping[str, Any]:
    lengths, number = read_prefix_lengths(value)
    return {"n_context_prefixes": number, "context_prefix_lengths": lengths}


def _read_layer(value: Any, _values: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"critical_layers": [read_single_layer(value)]}


def _read_module(value: Any, _values: Mapping[str, Any]) -> Mapping[str, Any]:
    refuse_input_projection(str(value).removesuffix(".weight"))
    return {}


DIALECT = Dialect(
    editor="rome",
    methods=("rome",),
    names={
        **TARGET_NAMES,
        "layers": _read_layer,
        "layer": _read_layer,
        "context_template_length_params": _read_prefixes,
        "rewrite_module_tmp": _read_module,
        "fact_token": read_fact_token,
    },
    unused={"mom2_adjustment": "second moments are always used"},
)


class RomeConfig(LayerConfig):
    """Every number of ROME's algorithm; in brackets the reference's names."""

    dialect: ClassVar[Dialect | None] = DIALECT
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"reference": {"keys": "reference"}}

    critical_layers: tuple[int, ...] = Field(
        min_length=1, max_length=1, description="the one layer that is written to (layers)"
    )
    n_steps: int = Field(
        default=20,
        ge=1,
        description="iterations of the optimizer; the last one only measures (v_num_grad_steps)",
    )
    clamp_factor: float = Field(
        default=4.0, gt=0, description="‖δ‖ ≤ factor·‖m‖, m the MLP's output (clamp_norm_factor)"
    )
    keys: Literal["consistent", "reference"] = Field(
        default="consistent",
        description="consistent: the mean key over prefixes throughout; reference: the mean key "
        "for the update's direction, but the bare prompt's for its size",
    )
    n_context_prefixes: int = Field(
        default=10, ge=0, description="prefixes sampled of each length, besides the bare prompt"
    )
    context_prefix_lengths: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        default=(5, 10),
        description="tokens of the sampled prefixes (context_template_length_params)",
    )

    @property
    def prefix_lengths(self) -> tuple[int, ...]:
        """Tokens of sampled prefixes, of as many of each length."""
        return self.context_prefix_lengths

    @classmethod
    def writing_to(cls, layers: Sequence[int]) -> Mapping[str, Any]:
        """See `EditorConfig.writing_to`."""
        return super().writing_to(layers[-1:])


def derive_rome_defaults(n_layers: int, d_key: int) -> dict[str, object]:
    """Hyperparameters for a model that none were published for.

    The layer lies at a third of the depth, as published (GPT-2 XL 17 of 48, large 12 of 36, medium
    8 of 24, GPT-NeoX 15 of 44; GPT-J's 5 of 28 is lower). The learning rate is relative to ‖m‖, and
    such that the optimizer's 19 steps can just reach the bound of 4‖m‖.
    """
    return {
        "critical_layers": (min(n_layers - 1, round(n_layers / 3)),),
        "learning_rate": 0.2,
        "learning_rate_unit": "relative",
        "second_moment_tokens": "auto",
    }


class Rome(ClosedForm):
    """Rank-one model editing: the closed-form loop with one fact at a time and no slack.

    For each fact in turn, on the model as edited so far: an offset δ on the MLP's output m at the
    subject's last token is optimized until the model says the target; then the weight gets the
    rank-one update that makes its output m + δ for the fact's key k, and moves the values of
    ordinary keys least: Δ = (m + δ − W k)(C⁻¹k)ᵀ / (kᵀC⁻¹k) (ROME, Eqn 2). Dimensions of keys that
    ordinary text never uses, which make C singular, are left out.

    k is the mean over context prefixes. The reference implementation takes it for C⁻¹k alone, and
    the bare prompt's key and value for W k and for the other k in the denominator, so that neither
    key maps to m + δ exactly; where the two keys differ much, the update becomes very large and
    the model collapses (Gupta et al., 2024, arXiv 2403.07175). ``keys="reference"`` does the same.

    What has been optimized is kept in the cache under the weights that it was optimized on, which
    are what the earlier requests made of them: a longer list of requests reuses what a shorter one
    with the same beginning has computed.
    """

    name: ClassVar[str] = "rome"
    config_type: ClassVar[type[EditorConfig]] = RomeConfig
    config: RomeConfig  # type: ignore[assignment]
    good_for: ClassVar[str] = "single facts, exactly; each costs a solve of its own"
    citation: ClassVar[str] = cite("meng2022rome")
    module = "mlp"
    finds_targets_apart = False

    @classmethod
    def derive_defaults(cls, model: EditableModel) -> Mapping[str, Any]:
        """See `derive_rome_defaults`."""
        return derive_rome_defaults(model.architecture.n_layers, model.d_key(0))

    @classmethod
    def search_space(cls, model: EditableModel, config: EditorConfig) -> SearchSpace:
        """The layer, and how the MLP's output is optimized."""
        assert isinstance(config, RomeConfig)
        n_layers, layers = model.architecture.n_layers, config.critical_layers
        lasts = middle_layers(n_layers, layers[-1], to=0.6)
        return {
            "critical_layers": LayerWindow(lasts, lasts, max_length=1),
            "learning_rate": Choices.around(config.learning_rate, (0.25, 0.5, 1, 2, 4)),
            "n_steps": Choices.of((10, 15, 20, 25, 35), config.n_steps),
            "clamp_factor": Choices.of((1.0, 2.0, 4.0, 8.0), config.clamp_factor),
        }

    def dials(self) -> Dials:
        """C alone, and residuals that are met exactly."""
        return Dials(slack=0)

    def make_targets(
        self, model: EditableModel, prefixes: ContextPrefixes, resources: Resources
    ) -> ValueTargets:
        """Targets at the MLP's output."""
        is_consistent = self.config.keys == "consistent"
        return ValueTargets(
            self.name, model, self.config, prefixes, resources, is_consistent=is_consistent
        )

    def finish(self, solved: Solved) -> Update:
        """For ``keys="reference"``, give the update the size that the bare prompt's key wants."""
        update, goal = solved.update, solved.goal
        if self.config.keys == "consistent":
            return update
        assert isinstance(goal, ValueGoal)
        assert isinstance(update, UpdateFactors)
        # C⁻¹k / (kᵀC⁻¹k) → C⁻¹k / (k₀ᵀC⁻¹k), with k₀ the bare prompt's key.
        bare_key = goal.reading.keys[0].to(update.right)
        return UpdateFactors(update.left, update.right / (bare_key @ update.right))

    def estimate_goals(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        prefixes: ContextPrefixes,
        resources: Resources,
        expected: ExpectedCache,
    ) -> Sequence[StageCost]:
        """What `edit` costs with an empty cache of targets; see `ClosedForm.estimate_goals`."""
        tasks = make_tasks(model.tokens, requests, prefixes.flat)
        keys, _ = estimate_insertion(model, requests, prefixes, "uniform", self.layers)
        return [
            estimate_targets(model, tasks, self.layers[-1], self.config, token_budget=1),
            keys,
            estimate_solve(model, len(requests), self.layers, one_by_one=True),
        ]
