"""A causal language model made ready to be edited, questioned and told apart from others."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, wraps
from inspect import signature
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editbench.errors import ModelError, RequestError, shown
from editbench.models.architecture import ProjectionKind, find_architecture, input_width
from editbench.models.decoder_size import DecoderSize
from editbench.models.device_memory import working_device
from editbench.models.edit_stack import EditStack, PutOn
from editbench.models.gguf_file import GgufFile
from editbench.models.memory_budget import MemoryBudget
from editbench.models.spec import ModelSpec
from editbench.models.tokens import Tokens
from editbench.models.weight_hash import WeightHash, hash_weights, write_weights

Function = TypeVar("Function", bound=Callable[..., Any])

_POSITION_FIELDS = ("max_position_embeddings", "max_seq_len")  # MPT has the other one


class EditableModel:
    """A model, its tokens and its architecture.

    The model is put into evaluation mode and its parameters stop asking for gradients; nothing
    else about it changes.

    Attributes:
        model: The transformers model.
        tokens: Its tokenizer.
        architecture: Where its parts are.
        name: What the user called it; goes into results and error messages.
        spec: The short name's entry, if it was loaded by one.
        max_positions: The longest sequence it takes, in tokens; None if it sets no limit.
        memory: How much of its devices' memory it and the work on it may take.
        planned_device: For a model without weights, the device that work on it is planned for.
        source: The folder that its weights were read from; None if there is none.
        gguf: The GGUF file that they were read from, dequantized; None if there is none.
        adapters: What was merged into them since, in order: PEFT folders, llama.cpp's LoRA files.
    """

    planned_device: torch.device | None = None
    source: Path | None = None
    gguf: GgufFile | None = None
    adapters: tuple[Path, ...] = ()

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | Tokens,
        *,
        name: str,
        spec: ModelSpec | None = None,
    ) -> None:
        """Wrap a model that is in memory.

        Raises:
            ModelError: The architecture is unsupported, or the tokenizer is slow or has ids that
                the embedding lacks.
        """
        self.name = name
        self.spec = spec
        tokens = tokenizer if isinstance(tokenizer, Tokens) else Tokens(tokenizer)
        try:
            self.architecture = find_architecture(model)
        except ModelError as error:
            raise ModelError(f"model '{name}': {error}") from error
        self.model = model.eval().requires_grad_(False)
        _keep_weights(model)
        self.max_positions = _read_max_positions(model)
        self._takes_position_ids = "position_ids" in signature(model.forward).parameters
        self._fingerprint: str | None = None
        self._hash = WeightHash()
        self._edits = EditStack()
        self._preambles: list[Callable[[str], str]] = []
        self.memory = MemoryBudget(self)
        n_embeddings = _n_rows(model, self.architecture.embedding)
        if not 0 <= tokens.largest_id < n_embeddings:
            raise ModelError(
                f"model '{name}': tokenizer and model do not belong together, got a vocabulary "
                f"with ids up to {tokens.largest_id}; expected ids from 0 to "
                f"{n_embeddings - 1}, the rows of the embedding. Use the model's own tokenizer."
            )
        # A tokenizer may have been given tokens that the model has not.
        n_rows, part = min((n_embeddings, "embedding"), (self.n_logits, "output head"))
        self.tokens = tokens.within(n_rows, name, part)

    @property
    def device(self) -> torch.device:
        """Where the token embedding works: what inputs are put on."""
        if self.planned_device is not None:
            return self.planned_device
        embedding = self.model.get_submodule(self.architecture.embedding)
        return working_device(embedding) or embedding.get_parameter("weight").device

    @cached_property
    def size(self) -> DecoderSize:
        """What work on the model costs."""
        return DecoderSize.of(self.model, self.architecture, d_key=self.d_key(0))

    @property
    def fingerprint(self) -> str:
        """Hash of the weights and of what the configuration says about computing with them.

        Two models share it if they hold the same bits under the same parameter names, whatever
        their names and places. It is that of the unedited model: computed once, at the latest when
        the first edit is put on. That of a model without weights is of their names and shapes
        alone.
        """
        if self._fingerprint is None:
            self._fingerprint = self._hash.look(self.model)
        return self._fingerprint

    @property
    def state(self) -> str:
        """The same of the model as it is now, with all that is on it.

        It is the fingerprint where the weights are those of the unedited model, to the bit. Asking
        for it takes about as long as reading all weights.
        """
        return self.state_after(None)

    def state_after(self, changed: Collection[str] | None) -> str:
        """`state`, by looking at those parameters only that can have changed.

        Args:
            changed: Their names, all that can have changed since the state was last asked for;
                None if that may be any.
        """
        _ = self.fingerprint  # what the weights are compared with
        weights = self._hash.look(self.model, changed)
        if not (marks := self._edits.marks):
            return weights
        return hashlib.blake2b("\n".join([weights, *marks]).encode(), digest_size=16).hexdigest()

    def as_asked(self, prompt: str) -> str:
        """The prompt behind what edits that change prompts put before it."""
        return "".join(preamble(prompt) for preamble in self._preambles) + prompt

    @contextmanager
    def prefacing(self, preamble: Callable[[str], str]) -> Iterator[None]:
        """Put texts before prompts that are asked, for the length of a ``with`` body.

        An edit that changes prompts and no weights does so. Texts that are read, and what editors
        make of requests, stay as they are.

        Args:
            preamble: What stands before a prompt, with the space behind it; nothing for a prompt
                that is to stay as it is.
        """
        self._preambles.append(preamble)
        try:
            yield
        finally:
            self._preambles.remove(preamble)

    @property
    def edits_on(self) -> tuple[str, ...]:
        """Identities of the edits that are on the model, from the first; see `Edit.identity`."""
        return self._edits.identities

    def put_on(
        self, put_on: PutOn, *, identity: Callable[[], str], changes_weights_alone: bool
    ) -> AbstractContextManager[None]:
        """Put an edit on for the length of a ``with`` body; see `EditStack.put_on`.

        Edits do so by themselves when they are `applied`.

        Raises:
            ModelError: Something else than an edit has changed the model.
        """
        if not self._edits.is_putting_on:
            self.check_known("apply edit")
        return self._edits.put_on(
            put_on, identity=identity, changes_weights_alone=changes_weights_alone
        )

    @contextmanager
    def unedited(self, operation: str) -> Iterator[None]:
        """Take all edits off for the length of a ``with`` body, then put the same bits on again.

        Raises:
            ModelError: Taking edits off does not make it the unedited model; names the `operation`.
        """
        state = self.state
        if state == self.fingerprint:
            yield
            return
        edited = self._hash.copy_changed(self.model)
        try:
            with self._edits.lifted():
                self.check_unedited(operation)
                yield
        finally:
            if self.state != state:  # something was written to the weights besides the edits
                write_weights(self.model, edited)

    def check_unedited(self, operation: str) -> None:
        """Refuse weights that are not those of the unedited model.

        Raises:
            ModelError: An edit is on the model, or something else has written to its weights.
        """
        if (state := self.state) != self.fingerprint:
            what_to_do = "Take the edits off first."
            if not self._edits:
                what_to_do = "No edit is on it: undo the change, or wrap the changed model anew."
            raise ModelError(
                f"{operation}: the weights of '{self.name}' are not what they were at first, got "
                f"the hash {state}; expected {self.fingerprint}. {what_to_do}"
            )

    def check_known(self, operation: str) -> None:
        """Refuse weights that something else than an edit has changed, where no edit is on.

        Raises:
            ModelError: The weights are not those of the unedited model.
        """
        if not self._edits:
            self.check_unedited(operation)

    def compute_fingerprint(self) -> str:
        """Hash the weights as they are now from scratch, which `state` does by halves."""
        return hash_weights(self.model)

    def d_key(self, layer: int, kind: ProjectionKind = "mlp") -> int:
        """Width of a key: what goes into the output projection of a layer's MLP or attention."""
        return input_width(self.model.get_submodule(self.architecture.projection(layer, kind)))

    @property
    def n_logits(self) -> int:
        """Width of the logits: the tokenizer's vocabulary, and often some unused entries more."""
        return _n_rows(self.model, self.architecture.head)

    def batch(
        self, sequences: Sequence[Sequence[int]], side: Literal["right", "left"] = "right"
    ) -> dict[str, torch.Tensor]:
        """Make the keyword arguments of one forward pass.

        Args:
            sequences: Token ids, at least one sequence, none of them empty.
            side: Where padding goes; it never changes a result.

        Returns:
            ``input_ids``, ``attention_mask`` and, where the model takes them, ``position_ids``,
            each ``[n, width]`` on the model's device.

        Raises:
            RequestError: A sequence is longer than the model takes.
        """
        self.check_lengths(sequences)
        ids, mask, positions = (part.to(self.device) for part in self.tokens.pad(sequences, side))
        arguments = {"input_ids": ids, "attention_mask": mask}
        if self._takes_position_ids:
            arguments["position_ids"] = positions
        return arguments

    def batch_behind(
        self,
        mask: torch.Tensor,
        rows: Sequence[Sequence[int]],
        starts: Sequence[int],
        side: Literal["right", "left"] = "right",
    ) -> dict[str, torch.Tensor]:
        """`batch` of rows' further tokens, of which the first ones are in a cache.

        Args:
            mask: Which places of the cache are no padding, `[n_rows, n_cached]`.
            rows: The further tokens of each row.
            starts: How many tokens each row has in the cache.
            side: On which side of the further tokens padding stands.
        """
        inputs = self.batch(rows, side)
        if "position_ids" in inputs:
            inputs["position_ids"] += torch.tensor(starts, device=self.device)[:, None]
        inputs["attention_mask"] = torch.cat([mask, inputs["attention_mask"]], dim=1)
        return inputs

    def check_lengths(self, sequences: Iterable[Sequence[int]]) -> None:
        """`check_length` of token ids.

        Raises:
            RequestError: A sequence is longer than the model takes.
        """
        for sequence in sequences:
            if self.max_positions is not None and len(sequence) > self.max_positions:
                self.check_length(len(sequence), self.tokens.decode(sequence[:16]))

    def check_length(self, n_tokens: int, text: str) -> None:
        """Refuse a sequence that is longer than the model takes; nothing is ever cut silently.

        The message quotes how `text` begins.

        Raises:
            RequestError: It is too long.
        """
        if self.max_positions is not None and n_tokens > self.max_positions:
            raise RequestError(
                f"model '{self.name}': a text is too long, got {n_tokens} tokens in "
                f"{shown(text)}; expected at most {self.max_positions}. Shorten the text."
            )


def of_unedited(operation: str) -> Callable[[Function], Function]:
    """Make a decorator of functions of a model, for whose length all edits are off it.

    Errors name the `operation`.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def run(model: EditableModel, /, *args: Any, **kwargs: Any) -> Any:
            with model.unedited(operation):
                return function(model, *args, **kwargs)

        return cast(Function, run)

    return decorate


def _keep_weights(model: PreTrainedModel) -> None:
    """Let RWKV's first run not halve weights, which changes nothing but what an edit fits."""
    is_halved = any(getattr(module, "layers_are_rescaled", False) for module in model.modules())
    if getattr(model.config, "rescale_every", 0) and not is_halved:
        model.config.rescale_every = 0


def _read_max_positions(model: PreTrainedModel) -> int | None:
    config = model.config.get_text_config(decoder=True)
    sizes = (getattr(config, name, None) for name in _POSITION_FIELDS)
    return next((size for size in sizes if isinstance(size, int) and size > 0), None)


def _n_rows(model: PreTrainedModel, path: str) -> int:
    return int(model.get_submodule(path).get_parameter("weight").shape[0])
