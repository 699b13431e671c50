"""The models of the MEMIT paper, with the settings it was run with.

Sources: arXiv 2210.07229, Appendix B, and the hyperparameter files of the authors' release. The
latter have no MEMIT file for GPT-NeoX-20B, so that entry is the paper's alone. Fine-tuning with
weight decay is published for GPT-J; for GPT-2 XL only layer and learning rate of fine-tuning
without it are, and for GPT-NeoX nothing, so that it gets what is derived from its depth. Of MEND
the settings are published, for editing and for training; a hypernetwork is trained by its user.
EMMET's are from its authors' file for GPT-2 XL (scalable-model-editing/encore), AlphaEdit's from
its authors' files for GPT-2 XL and GPT-J (jianghoucheng/AlphaEdit).
"""

from types import MappingProxyType

from editbench.models.spec import ModelSpec

# Alike in the paper for all its models, or fixed in the authors' code (stop loss, key weighting,
# the number and length of sampled context prefixes).
_SHARED = {
    "learning_rate": 0.5,
    "learning_rate_unit": "absolute",
    "offset_decay": 0.5,
    "kl_weight": 0.0625,
    "stop_loss": 0.05,
    "key_weighting": "grouped",
    "n_context_prefixes": 5,
    "context_prefix_length": 10,
}

_GPT2_XL = {
    **_SHARED,
    "critical_layers": (13, 14, 15, 16, 17),
    "n_steps": 20,
    "clamp_factor": 0.75,
    "loss_layer": 47,
    "preservation_weight": 20_000.0,
}

_GPT_J = {
    **_SHARED,
    "critical_layers": (3, 4, 5, 6, 7, 8),
    "n_steps": 25,
    "clamp_factor": 0.75,
    "loss_layer": 27,
    "preservation_weight": 15_000.0,
}

# AlphaEdit's own, alike in its authors' files; the rest there is MEMIT's.
_ALPHAEDIT = {
    "null_space_threshold": 0.02,
    "null_space_unit": "absolute",
    "ridge": 10.0,
    "ridge_unit": "absolute",
}

# Alike in all of the authors' files for ROME; prefixes: 10 of 5 tokens and 10 of 10.
_ROME_SHARED = {
    "n_steps": 20,
    "learning_rate": 0.5,
    "learning_rate_unit": "absolute",
    "clamp_factor": 4.0,
    "offset_decay": 0.5,
    "kl_weight": 0.0625,
    "stop_loss": 0.05,
    "n_context_prefixes": 10,
    "context_prefix_lengths": (5, 10),
}

# The paper's choices; what the reference does otherwise is in `editbench.editors.finetune`.
_FINE_TUNE_SHARED = {
    "parameters": "mlp-projection",
    "scoring": "teacher-forced",
    "n_epochs": 25,
    "batch_size": 64,
    "learning_rate": 5e-4,
    "weight_decay": 5e-4,
    "stop_loss": 0.01,
}

# Alike in all of the authors' files for MEND, and what they trained their networks with. Those are
# no files of ours: train one with 'editbench train mend'.
_MEND = MappingProxyType({"chunk_size": 128, "lr_scale": 1.0})
_MEND_TRAINING = {
    "rank": 1920,
    "learning_rate": 1e-6,
    "rate_learning_rate": 1e-4,
    "initial_rate": 1e-4,
    "edit_weight": 0.1,
    "locality_weight": 1.0,
    "batch_size": 10,
    "edits_at_once": 1,
    "clip_norm": 100.0,
}

# The paper's Wikipedia dump is gone from the hub; this one has taken its place.
_WIKIPEDIA = "hf:wikimedia/wikipedia:20231101.en"

BUILTIN_SPECS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="gpt2-xl",
        repository="openai-community/gpt2-xl",
        notes="GPT-2 XL, 1.5 billion parameters, 48 layers",
        defaults=MappingProxyType(
            {
                "memit": MappingProxyType(_GPT2_XL),
                "alphaedit": MappingProxyType({**_GPT2_XL, **_ALPHAEDIT}),
                "emmet": MappingProxyType(
                    {**_GPT2_XL, "critical_layers": (17,), "preservation_weight": 10_000.0}
                ),
                "rome": MappingProxyType(
                    {**_ROME_SHARED, "critical_layers": (17,), "loss_layer": 47}
                ),
                "ft-w": MappingProxyType({**_FINE_TUNE_SHARED, "layer": 1}),
                "mend": _MEND,
                "mend-training": MappingProxyType({**_MEND_TRAINING, "blocks": (45, 46, 47)}),
            }
        ),
        defaults_source=(
            "hyperparameter files of the authors' MEMIT release for GPT-2 XL, and for EMMET and "
            "AlphaEdit of their authors'"
        ),
        corpus=_WIKIPEDIA,
    ),
    ModelSpec(
        name="gpt-j-6b",
        repository="EleutherAI/gpt-j-6b",
        notes="GPT-J, 6 billion parameters, 28 layers",
        defaults=MappingProxyType(
            {
                "memit": MappingProxyType(_GPT_J),
                "alphaedit": MappingProxyType({**_GPT_J, **_ALPHAEDIT}),
                "rome": MappingProxyType(
                    {**_ROME_SHARED, "critical_layers": (5,), "loss_layer": 27}
                ),
                "ft-w": MappingProxyType({**_FINE_TUNE_SHARED, "layer": 21}),
                "mend": _MEND,
                "mend-training": MappingProxyType({**_MEND_TRAINING, "blocks": (25, 26, 27)}),
            }
        ),
        defaults_source=(
            "arXiv 2210.07229, Appendix B, and the authors' files for GPT-J, for AlphaEdit its own"
        ),
        corpus=_WIKIPEDIA,
    ),
    ModelSpec(
        name="gpt-neox-20b",
        repository="EleutherAI/gpt-neox-20b",
        notes="GPT-NeoX, 20 billion parameters, 44 layers",
        defaults=MappingProxyType(
            {
                "memit": MappingProxyType(
                    {
                        **_SHARED,
                        "critical_layers": (6, 7, 8, 9, 10),
                        "n_steps": 20,
                        "clamp_factor": 0.3,
                        "loss_layer": 43,
                        "preservation_weight": 20_000.0,
                    }
                ),
                "rome": MappingProxyType(
                    {**_ROME_SHARED, "critical_layers": (15,), "loss_layer": 43}
                ),
            }
        ),
        defaults_source=(
            "arXiv 2210.07229, Appendix B, and for ROME the authors' file (they released none for "
            "MEMIT on NeoX)"
        ),
        corpus=_WIKIPEDIA,
    ),
)
