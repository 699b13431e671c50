"""From the last block's hidden states to logits, for states that did not come out of a forward."""

from torch import Tensor

from editbench.errors import ModelError
from editbench.models.architecture import input_width
from editbench.models.editable import EditableModel


def apply_head(model: EditableModel, hidden: Tensor) -> Tensor:
    """Final norm, output head and, where the architecture caps its logits, the cap.

    Architectures that do more than this between their last block and their logits are told apart
    by comparing with their own forward (`SuffixReplay` does).

    Args:
        model: The model.
        hidden: States that left a decoder block, `[n, d_model]`.

    Returns:
        Logits, `[n, vocabulary]`, on the model's device: where its own forward puts them.

    Raises:
        ModelError: Something else stands between the last block and the head.
    """
    network = model.model
    head = network.get_submodule(model.architecture.head)
    if model.architecture.final_norm is not None:
        hidden = network.get_submodule(model.architecture.final_norm)(hidden)
    if input_width(head) != hidden.shape[-1]:
        raise ModelError(
            f"reading out hidden states: the head of '{model.name}' takes {input_width(head)} "
            f"dimensions, got {hidden.shape[-1]}. Its blocks can only be read out by its own "
            "forward; use its last layer as loss layer."
        )
    logits = head(hidden)
    cap = getattr(network.config.get_text_config(), "final_logit_softcapping", None)
    if cap is not None:
        logits = (logits / cap).tanh() * cap
    return logits.to(model.device)
