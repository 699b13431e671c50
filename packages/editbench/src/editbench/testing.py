"""What plugin authors need to test an editor: a tiny model, toy cases and a conformance check."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from editbench.datasets.corpus import Corpus
from editbench.editors.base import Editor, EditorConfig, Resources, TrainedEditor
from editbench.edits.edit import Edit
from editbench.errors import EditbenchError
from editbench.models.editable import EditableModel
from editbench.requests import EditCase, EditRequest, Probe

_END = "<|endoftext|>"
_N_EDITED = 3
_N_TRAINED_ON = 6
_FIRST = ("Ana", "Boris", "Carmen", "Dmitri", "Elif", "Farid", "Greta", "Hiro")
_LAST = ("Lund", "Marek", "Novak", "Okoro", "Pereira", "Quist", "Rossi", "Sato")
_JOBS = ("baker", "pilot", "poet", "judge", "farmer", "singer")
_PROMPTS = ("{} works as a", "The job of {} is", "Everybody knows that {} is a")
_VERBS = ("met", "saw", "helped", "praised", "ignored", "painted")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `toy_corpus`, without a beginning-of-sequence token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(toy_corpus().texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_END,
        eos_token=_END,
        unk_token=_END,
        pad_token=_END,
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_model(*, n_layers: int = 4, d_model: int = 24, seed: int = 0) -> EditableModel:
    """A GPT-2 of random weights, in memory, small enough to be edited in a second.

    It knows no facts: what it is good for is to see that an editor obeys its contract. The global
    random state is left alone.
    """
    tokenizer = tiny_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=d_model,
        n_layer=n_layers,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    return EditableModel(model, tokenizer, name="tiny")


def toy_cases(n_cases: int = 6) -> list[EditCase]:
    """Up to 32 facts about jobs, with a paraphrase and a neighborhood probe each."""
    names = [f"{first} {last}" for first in _FIRST for last in _LAST]
    cases = []
    for index, subject in enumerate(names[: min(n_cases, 32)]):
        true, new = _JOBS[index % len(_JOBS)], _JOBS[(index + 1) % len(_JOBS)]
        neighbor = names[32 + index]
        cases.append(
            EditCase(
                EditRequest(str(index), subject, _PROMPTS[0], new, relation="job"),
                target_true=true,
                probes=(
                    Probe("efficacy", _PROMPTS[0].format(subject), new, true),
                    Probe("paraphrase", _PROMPTS[1].format(subject), new, true),
                    Probe("neighborhood", _PROMPTS[0].format(neighbor), true, new),
                ),
                generation_prompts=(f"{subject} is",),
            )
        )
    return cases


def toy_corpus() -> Corpus:
    """A few hundred invented sentences, the same at every call."""

    def write() -> Iterator[str]:
        chance = random.Random(0)
        for _ in range(400):
            one, other = (f"{chance.choice(_FIRST)} {chance.choice(_LAST)}" for _ in range(2))
            prompt, job = chance.choice(_PROMPTS), chance.choice(_JOBS)
            yield f"{prompt.format(one)} {job}, and {one} {chance.choice(_VERBS)} {other}."

    return Corpus("toy", "toy-1", write)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One clause of the editor contract, and whether it holds.

    Attributes:
        clause: What was checked.
        failure: What went wrong; None if the clause holds.
    """

    clause: str
    failure: str | None

    @property
    def passed(self) -> bool:
        """Whether the clause holds."""
        return self.failure is None


class _BodyError(Exception):
    """Raised on purpose inside of an applied edit."""


class _BrokenError(Exception):
    """A clause does not hold."""


def check_editor(editor_type: type[Editor]) -> list[CheckResult]:
    """Check an editor against the contract of `Editor.edit`, on `tiny_model`.

    The editor runs with `config_for_check`. To edit it is given requests alone, never probes.

    Returns:
        One result a clause; a clause that could not be reached is left out.
    """
    with TemporaryDirectory() as folder:
        return _check_editor(editor_type, Path(folder))


def config_for_check(
    editor_type: type[Editor], model: EditableModel, cases: Sequence[EditCase], folder: Path
) -> EditorConfig:
    """An editor's default configuration for a model, or that of its brief training.

    Args:
        editor_type: The editor.
        model: The model.
        cases: Cases to train on, where it has to be trained; see `TrainedEditor.train_briefly`.
        folder: For what a training leaves behind.
    """
    if issubclass(editor_type, TrainedEditor):
        return editor_type.train_briefly(model, cases, folder)
    return editor_type.default_config(model)[0]


def _check_editor(editor_type: type[Editor], folder: Path) -> list[CheckResult]:
    model = tiny_model()
    cases = toy_cases(_N_EDITED + _N_TRAINED_ON)
    requests = [case.request for case in cases[:_N_EDITED]]
    results: list[CheckResult] = []

    @contextmanager
    def clause(text: str) -> Iterator[None]:
        """Add a clause: it holds unless its block raises."""
        failure = None
        try:
            yield
        except _BrokenError as error:
            failure = str(error)
        except (Exception, SystemExit) as error:
            kind = "" if isinstance(error, EditbenchError) else f"{type(error).__name__}: "
            failure = f"{kind}{error}"
        results.append(CheckResult(text, failure))

    before = _snapshot(model)
    random_state = _random_state()
    edit: Any = None
    with clause("computes an edit with its default configuration"):
        config = config_for_check(editor_type, model, cases[_N_EDITED:], folder)
        edit = editor_type(config).edit(model, requests, _resources())
        _expect(isinstance(edit, Edit), f"edit() returned {type(edit).__name__}, not an Edit")
    if not isinstance(edit, Edit):
        return results
    with clause("leaves the model bit-identical"):
        _expect(_is_same(before, _snapshot(model)), "weights or buffers differ after edit()")
    with clause("leaves no hook behind"):
        _expect(not _find_hooks(model), f"hooks on {_find_hooks(model)}")
    with clause("leaves the global random state alone"):
        _expect(
            _random_state() == random_state, "random, numpy or torch state differs after edit()"
        )
    with clause("is deterministic under a seed"):
        again = editor_type(config).edit(model, requests, _resources())
        first, second = (_edited_logits(model, one, requests) for one in (edit, again))
        difference = (first - second).abs().max()
        _expect(
            torch.equal(first, second),
            f"two edits with one seed differ by {difference:.2e} in the logits",
        )
    with clause("says whether it changes something"):
        says = edit.changes_something
        changes = not torch.equal(_edited_logits(model, edit, requests), _logits(model, requests))
        _expect(says == changes, f"changes_something is {says}, but the logits say otherwise")
    with clause("restores the exact bits when the edit is taken off"):
        with edit.applied(model):
            pass
        _expect(_is_same(before, _snapshot(model)), "weights or buffers differ after applied()")
    with clause("restores the exact bits when the body raises"):
        with suppress(_BodyError), edit.applied(model):
            raise _BodyError
        _expect(
            _is_same(before, _snapshot(model)) and not _find_hooks(model),
            "weights, buffers or hooks differ after an exception inside applied()",
        )
    return results


def _expect(holds: bool, failure: str) -> None:
    if not holds:
        raise _BrokenError(failure)


def _resources() -> Resources:
    return Resources(seed=0, corpus=toy_corpus())


def _snapshot(model: EditableModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.model.state_dict().items()}


def _is_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _find_hooks(model: EditableModel) -> list[str]:
    return [
        name or "the model"
        for name, module in model.model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    ]


def _random_state() -> tuple[object, ...]:
    import numpy as np

    numpy_state = np.random.get_state()
    return (
        random.getstate(),
        str(numpy_state),
        tuple(torch.get_rng_state().tolist()),
    )


def _edited_logits(model: EditableModel, edit: Edit, requests: Sequence[EditRequest]) -> Tensor:
    with edit.applied(model):
        return _logits(model, requests)


def _logits(model: EditableModel, requests: Sequence[EditRequest]) -> Tensor:
    sequences = [model.tokens.encode(model.as_asked(request.text)) for request in requests]
    with torch.no_grad():
        return model.model(**model.batch(sequences)).logits
