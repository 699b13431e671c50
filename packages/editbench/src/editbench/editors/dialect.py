"""Hyperparameter files of other tools: the authors' code, EasyEdit, AlphaEdit and its kin."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from editbench.datasets.records import Understanding
from editbench.errors import ConfigError, UnknownNameError, is_near_miss

Convert = Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]
"""Makes our fields of a value, given all of the file's; a `ValueError` says what is wrong."""

"""How similar to a known name an unknown one must be to be taken for a slip, from 0 to 1."""

_BY_COMMAND = "options of the command say it"
_BY_MODEL = "found from the model"
_BY_STATISTICS = "of second moments: --second-moments, --corpus"
_DOCUMENTS = "counts documents, second_moment_tokens tokens"
_NO_EFFECT = "without effect in the authors' code"
_OTHER_METHOD = "of a method that this editor is not"
_UNKNOWN = "not known"

UNUSED: Mapping[str, str] = {
    "alg_name": _BY_COMMAND,
    "model_name": _BY_COMMAND,
    "model_path": _BY_COMMAND,
    "tokenizer_name": _BY_COMMAND,
    "tokenizer_class": _BY_COMMAND,
    "device": _BY_COMMAND,
    "model_parallel": _BY_COMMAND,
    "fp16": _BY_COMMAND,
    "stats_dir": _BY_STATISTICS,
    "mom2_dataset": _BY_STATISTICS,
    "mom2_dtype": _BY_STATISTICS,
    "mom2_n_samples": _DOCUMENTS,
    "batch_size": "--n-edits says how many facts are written at once",
    "max_length": "texts are not cut",
    "layer_selection": _NO_EFFECT,
    "mom2_adjustment": _NO_EFFECT,
    "layer_module_tmp": _BY_MODEL,
    "mlp_module_tmp": _BY_MODEL,
    "attn_module_tmp": _BY_MODEL,
    "ln_f_module": _BY_MODEL,
    "lm_head_module": _BY_MODEL,
    "rewrite_module_tmp": _BY_MODEL,
    "mom2_update_weight": _OTHER_METHOD,
    "nullspace_threshold": _OTHER_METHOD,
    "L2": _OTHER_METHOD,
    "l2_regularization": _OTHER_METHOD,
    "P_loc": _OTHER_METHOD,
    "update_norm_lambda": _OTHER_METHOD,
    "emmet_lambda": _OTHER_METHOD,
    "prob_cutoff": _OTHER_METHOD,
}
"""Fields of other tools that no field here is made of, and why."""

_FINE_TUNING = ("num_steps", "lr", "wd_power_law", "norm_constraint", "objective_optimization")
_OPTIMIZED = ("v_num_grad_steps", "v_lr", "v_loss_layer", "v_weight_decay", "clamp_norm_factor")
_EDITORS_OF: Mapping[str, str] = {
    **dict.fromkeys(_FINE_TUNING, "ft-w"),
    **dict.fromkeys(_OPTIMIZED, "memit or --editor rome"),
}
"""Fields that tell which method a file is for, and the option that chooses it here."""

_EDITOR_OF_METHOD: Mapping[str, str] = {
    "memit": "memit",
    "memit_seq": "memit-history",
    "memit_rect": "rect",
    "memit_prune": "prune",
    "encore": "encore",
    "alphaedit": "alphaedit",
    "evoedit": "evoedit",
    "nas": "nas",
    "emmet": "emmet",
    "rome": "rome",
    "ft": "ft-w",
    "mend": "mend",
}

TARGET_NAMES: Mapping[str, str] = {
    "v_num_grad_steps": "n_steps",
    "v_lr": "learning_rate",
    "clamp_norm_factor": "clamp_factor",
    "v_weight_decay": "offset_decay",
    "kl_factor": "kl_weight",
    "v_loss_layer": "loss_layer",
}
"""Names of what `TargetSettings` holds."""


@dataclass(frozen=True, slots=True)
class Translation:
    """A file of another tool, in our fields.

    Attributes:
        values: Our fields and their values.
        names: For each of these fields, what the file calls it.
        understanding: What was read as what, and what was not used, and why.
    """

    values: Mapping[str, Any]
    names: Mapping[str, str]
    understanding: Understanding


@dataclass(frozen=True, slots=True)
class Dialect:
    """What other tools call the fields of an editor's configuration.

    Attributes:
        editor: The editor.
        methods: The methods that a file for it may be for, as its `alg_name` says, in lower case.
        names: Their field to ours, or how our fields are made of it.
        unused: What is not used beside `UNUSED`, and why.
    """

    editor: str
    methods: tuple[str, ...]
    names: Mapping[str, str | Convert]
    unused: Mapping[str, str]

    def translate(
        self, values: Mapping[str, Any], own: Collection[str], source: str
    ) -> Translation | None:
        """Read a file's values.

        Args:
            values: Fields and values as the file has them.
            own: The fields of the editor's configuration.
            source: The file, for messages.

        Returns:
            Our fields, or None where the file has these anyway.

        Raises:
            ConfigError: The file is for another editor, contradicts what this one does, gives a
                field under both names, or has one that looks like a slip.
        """
        unused = {**UNUSED, **self.unused}
        for name in values:
            if name in _EDITORS_OF and not (name in own or name in self.names or name in unused):
                raise ConfigError(
                    f"{source}: field '{name}' is of another method, got editor '{self.editor}'. "
                    f"Choose --editor {_EDITORS_OF[name]}."
                )
        if not any(name not in own and (name in self.names or name in unused) for name in values):
            return None
        self._check_method(values.get("alg_name"), source)
        understanding = Understanding()
        understanding.form = "another tool's hyperparameters"
        ours = {
            name: value for name, value in values.items() if name in own and name not in self.names
        }
        names = {name: name for name in ours}
        for name, value in values.items():
            if name in self.names:
                made = self._convert(name, value, values, source)
                for field in made:
                    if field in ours:
                        raise ConfigError(
                            f"{source}: '{names[field]}' and '{name}' both give '{field}', got "
                            f"{ours[field]!r} and {made[field]!r}. Keep one."
                        )
                    ours[field], names[field] = made[field], name
                if name not in own:
                    understanding.take(f"'{name}'", " and ".join(made) or "what is done anyway")
            elif name in own:
                continue
            elif name in unused:
                understanding.ignore(f"'{name}'", unused[name])
            else:
                known = [*own, *self.names, *unused]
                if is_near_miss(name, known):
                    raise ConfigError(f"{source}: {UnknownNameError('field', name, known)}")
                understanding.ignore(f"'{name}'", _UNKNOWN)
        return Translation(ours, names, understanding)

    def _check_method(self, method: object, source: str) -> None:
        if method is not None and str(method).lower() not in self.methods:
            editor = _EDITOR_OF_METHOD.get(str(method).lower())
            choose = f"--editor {editor}" if editor else "another --editor"
            raise ConfigError(
                f"{source}: is for the method {method!r}, got editor '{self.editor}'. Choose "
                f"{choose}, or remove 'alg_name' to use the file all the same."
            )

    def _convert(
        self, name: str, value: Any, values: Mapping[str, Any], source: str
    ) -> Mapping[str, Any]:
        convert = self.names[name]
        if isinstance(convert, str):
            return {convert: value}
        try:
            return convert(value, values)
        except ValueError as error:
            raise ConfigError(f"{source}: field '{name}' {error}, got {value!r}.") from error


def read_fact_token(value: Any, _values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where keys are read: at the subject's last token, as here always."""
    if value != "subject_last":
        raise ValueError("must be 'subject_last', where facts are always read here")
    return {}


def read_single_layer(value: Any) -> Any:
    """A layer, or a list of one."""
    layers = value if isinstance(value, list) else [value]
    if len(layers) != 1:
        raise ValueError("must be one layer, since this editor writes to one")
    return layers[0]


def read_prefix_lengths(value: Any) -> tuple[list[int], int]:
    """Pairs of length and number of context prefixes, as lengths and the number of each."""
    is_pairs = isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 for pair in value
    )
    if not is_pairs or not value or any(number != value[0][1] for _, number in value):
        raise ValueError("must be pairs of a length and a number, which is the same in all")
    return [length for length, _ in value], value[0][1]


_INPUT_PROJECTIONS = frozenset(
    ("c_fc", "fc_in", "fc1", "dense_h_to_4h", "gate_proj", "up_proj", "gate_up_proj", "w1", "w3")
)


def refuse_input_projection(path: str) -> None:
    """Refuse a module that is not an MLP's output projection, by what it is usually called.

    Raises:
        ValueError: It is an input projection.
    """
    if path.rpartition(".")[2] in _INPUT_PROJECTIONS:
        raise ValueError("goes into the MLP; what is written here is the projection out of it")
