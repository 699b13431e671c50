"""Whether padding in the middle of a row changes nothing there.

Parts of rows that are run apart, such as a context prefix and what stands behind it, are put
together at the width of the longest, and padding comes to lie between them. The mask hides it, but
where a model counts distances by places and not by the positions that it is told, or looks through
a window, padding takes up room all the same.
"""

from inspect import signature

from transformers.cache_utils import DynamicCache

from editbench.models.continuing import find_continuing
from editbench.models.editable import EditableModel


def ignores_gaps(model: EditableModel) -> bool:
    """Whether parts of rows can be put together with padding between them.

    Only keys and values can be put together. Models that are not told positions may count them
    from the mask, or not; none of them is trusted (MPT counts padding as distance). GPT-Neo's local
    attention counts places.
    """
    if find_continuing(model) != "padded":
        return False
    if "position_ids" not in signature(model.model.forward).parameters:
        return False
    config = model.model.config.get_text_config(decoder=True)
    if getattr(config, "window_size", None) is not None:
        return False
    layers = DynamicCache(config=model.model.config).layers
    return not any(getattr(layer, "is_sliding", False) for layer in layers)
