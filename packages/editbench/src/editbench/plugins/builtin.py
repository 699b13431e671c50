"""What ships with editbench, registered through the same hooks that a third party uses.

Imports stand inside the hooks: nothing heavy is loaded before somebody asks for it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editbench.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from editbench.datasets.base import Dataset
    from editbench.editors.base import Editor
    from editbench.metrics.base import AnyMetric
    from editbench.models.spec import ModelSpec


@hookimpl
def editbench_register_editors() -> "Sequence[type[Editor]]":
    """Register the editors that ship with editbench."""
    from editbench.editors import alphaedit, memit
    from editbench.editors.emmet import Emmet
    from editbench.editors.finetune import FineTune, LocFineTune
    from editbench.editors.mend.editor import Mend
    from editbench.editors.prompting import InContext, Retrieval
    from editbench.editors.rome import Rome
    from editbench.editors.ultraedit import UltraEdit
    from editbench.editors.unedited import Unedited

    return [
        Unedited,
        memit.Memit,
        memit.MemitHistory,
        memit.Encore,
        memit.Blue,
        memit.Rect,
        memit.OteRect,
        memit.Prune,
        memit.OtePrune,
        memit.Revive,
        Rome,
        Emmet,
        alphaedit.AlphaEdit,
        alphaedit.EvoEdit,
        alphaedit.Nas,
        alphaedit.Sphere,
        UltraEdit,
        FineTune,
        LocFineTune,
        Mend,
        InContext,
        Retrieval,
    ]


@hookimpl
def editbench_register_datasets() -> "Sequence[type[Dataset]]":
    """Register the datasets that ship with editbench."""
    from editbench.datasets.counterfact import CounterFact, CounterFactFull
    from editbench.datasets.facts import Facts
    from editbench.datasets.flat import KnowEditDataset, QAEditDataset, WikiBigEditDataset
    from editbench.datasets.mquake import MQuAKE, MQuAKERemastered
    from editbench.datasets.ripple_edits import RippleEditsDataset
    from editbench.datasets.zsre import ZsRE
    from editbench.plugins.atlas import AtlasDataset, AtlasTraining, AtlasValidation

    return [
        AtlasDataset,
        AtlasValidation,
        AtlasTraining,
        CounterFact,
        CounterFactFull,
        ZsRE,
        MQuAKE,
        MQuAKERemastered,
        RippleEditsDataset,
        KnowEditDataset,
        QAEditDataset,
        WikiBigEditDataset,
        Facts,
    ]


@hookimpl
def editbench_register_metrics() -> "Sequence[type[AnyMetric]]":
    """Register the metrics that ship with editbench."""
    from editbench.metrics.generation import GenerationEntropy, ReferenceScore
    from editbench.metrics.generation_match import GenerationExact, GenerationMatch
    from editbench.metrics.lm_eval.metric import LmEval
    from editbench.metrics.perplexity import Perplexity
    from editbench.metrics.portability import Portability
    from editbench.metrics.probes import Accuracy, Success, TokenAccuracy
    from editbench.metrics.specificity import CounterFactPlus, Divergence

    return [
        Success,
        Accuracy,
        TokenAccuracy,
        GenerationMatch,
        GenerationExact,
        Portability,
        GenerationEntropy,
        ReferenceScore,
        Perplexity,
        CounterFactPlus,
        Divergence,
        LmEval,
    ]


@hookimpl
def editbench_register_models() -> "Sequence[ModelSpec]":
    """Register the models that editbench knows by a short name."""
    from editbench.models.builtin_specs import BUILTIN_SPECS
    from editbench.plugins.atlas import ATLAS

    return [ATLAS, *BUILTIN_SPECS]
