"""An edited model as an ordinary Hugging Face folder."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editbench.edits.edit import Edit
from editbench.errors import EditError
from editbench.models.editable import EditableModel
from editbench.models.quiet import quiet_transformers
from memit_core import in_memory


def export_model(
    edit: Edit, model: EditableModel, folder: Path, *, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Save `model` with `edit` on it, whole or not at all; `model` itself stays as it is.

    The folder loads with ``AutoModelForCausalLM.from_pretrained``, without editbench. Only edits
    of weights can be saved so.

    Args:
        edit: What to put on the model.
        model: The model that the edit was computed for.
        folder: A folder that is new or empty.
        tokenizer: The model's tokenizer as it was loaded: an `EditableModel` keeps only what
            editing needs of it.

    Raises:
        EditError: The edit is not for this model; the folder holds something; or it cannot be
            written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EditError(
            f"export model: the folder must be new or empty, got {str(folder)!r}. "
            "Choose another one."
        )
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with quiet_transformers(), edit.applied(model), _ready_to_save(model.model):
            model.model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
        unfinished.replace(folder)
    except (OSError, SafetensorError) as error:
        raise EditError(
            f"export model: cannot write the folder, got {str(folder)!r} ({error}). "
            "Choose a place that is writable and has space left."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _ready_to_save(network: PreTrainedModel) -> Iterator[None]:
    """Let transformers save what accelerate has offloaded."""
    if not any(parameter.is_meta for parameter in network.parameters()):
        yield
        return
    # It looks into this map, which is there only if it has placed the model by itself.
    placed_elsewhere = not hasattr(network, "hf_device_map")
    if placed_elsewhere:
        vars(network)["hf_device_map"] = {"": "cpu"}
    try:
        # Of offloaded weights, it does not see that they are tied.
        with in_memory(network, network.all_tied_weights_keys):
            yield
    finally:
        if placed_elsewhere:
            del vars(network)["hf_device_map"]
