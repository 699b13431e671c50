"""The models of the MEMIT paper, with the settings it was run with.

Sources: arXiv 2210.07229, Appendix B, and the hyperparameter files of the authors' release; the
latter have no MEMIT file for GPT-NeoX-20B, so that entry is the paper's alone.
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

BUILTIN_SPECS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="gpt2-xl",
        repository="openai-community/gpt2-xl",
        notes="GPT-2 XL, 1.5 billion parameters, 48 layers",
        defaults=MappingProxyType(
            {
                "memit": MappingProxyType(
                    {
                        **_SHARED,
                        "critical_layers": (13, 14, 15, 16, 17),
                        "n_steps": 20,
                        "clamp_factor": 0.75,
                        "loss_layer": 47,
                        "preservation_weight": 20_000.0,
                    }
                )
            }
        ),
        defaults_source="hyperparameter file of the authors' MEMIT release for GPT-2 XL",
    ),
    ModelSpec(
        name="gpt-j-6b",
        repository="EleutherAI/gpt-j-6b",
        notes="GPT-J, 6 billion parameters, 28 layers",
        defaults=MappingProxyType(
            {
                "memit": MappingProxyType(
                    {
                        **_SHARED,
                        "critical_layers": (3, 4, 5, 6, 7, 8),
                        "n_steps": 25,
                        "clamp_factor": 0.75,
                        "loss_layer": 27,
                        "preservation_weight": 15_000.0,
                    }
                )
            }
        ),
        defaults_source="arXiv 2210.07229, Appendix B, and the authors' file for GPT-J",
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
                )
            }
        ),
        defaults_source="arXiv 2210.07229, Appendix B (the authors released no file for NeoX)",
    ),
)
