"""Everything that an edit and its questions need, tried on one small model against plain forwards.

A plain forward is one row, without padding, without a cache, of the whole model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal
from unittest.mock import patch

import torch
import transformers as hf
from torch import Tensor

from editbench.editors.base import Resources
from editbench.editors.context_prefixes import ContextPrefixes
from editbench.editors.keys.layer_sweep import LayerSweep
from editbench.editors.memit import Memit
from editbench.editors.rome import Rome
from editbench.editors.subject_tokens import key_row
from editbench.editors.targets.optimizer import TargetOptimizer
from editbench.edits.weight_edit import WeightEdit
from editbench.errors import ModelError
from editbench.models.agreement import relative_error
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.models.generation import generate_texts
from editbench.questions import Generate, Score
from editbench.replay.offset_forward import FullForward, OffsetRow, OffsetSite
from editbench.requests import EditRequest
from editbench.second_moments.corpus_keys import read_keys
from editbench.testing import tiny_tokenizer, toy_cases, toy_corpus
from memit_core import capture, intervene

Result = Literal["replayed", "whole forwards", "refused", "broken", "not made"]

# Rounding, in float32: of one forward; and of an optimization of a few steps by Adam, whose first
# ones are as large for the smallest gradients as for the largest.
_ROUNDING, _ROUNDING_OF_EDITS = 3e-5, 2e-2
_PREFIXES = ContextPrefixes((("",), ("The car went. ", "It is known that ")))
_N_WRITTEN = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one model.

    Attributes:
        result: Whether it is edited and asked, and how; or what else happened.
        reason: Why it was refused, broken or not made, or why z goes by whole forwards.
    """

    result: Result
    reason: str = ""


class _InexactError(AssertionError):
    """Something is not what plain forwards give."""


def try_model(network: hf.PreTrainedModel) -> Outcome:
    """Edit a model with MEMIT and ROME, ask it, and compare everything with plain forwards."""
    try:
        model = EditableModel(network, tiny_tokenizer(), name="small")
    except ModelError as error:
        return Outcome("refused", str(error).removeprefix("model 'small': "))
    try:
        return _try(model)
    except ModelError as error:
        return Outcome("refused", str(error).removeprefix("model 'small': "))
    except _InexactError as error:
        return Outcome("broken", str(error))
    except Exception as error:  # whatever it is, the table is to say so
        return Outcome("broken", f"{type(error).__name__}: {' '.join(str(error).split())}")


def _try(model: EditableModel) -> Outcome:
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    requests = [case.request for case in toy_cases(2)]
    _check_answers(model)
    _check_text_keys(model)
    _check_offsets(model, requests)
    _check_sweep(model, requests)
    reason = ""
    for editor in (Memit, Rome):
        edit = _edit(editor, model, requests)
        with _without_replay():
            plain = _edit(editor, model, requests)
        for name, update in plain.updates.items():
            error = relative_error(_dense(edit.updates[name]), _dense(update))
            _require(error <= _ROUNDING_OF_EDITS, f"{editor.name}'s update of {name}", error)
        if editor is Memit:
            reason = edit.card.extra["replay_failure"] or ""
        with edit.applied(model):
            _check_answers(model)
    after = model.model.state_dict()
    same = all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    _require(same, "the model after its edits were taken off")
    return Outcome("whole forwards" if reason else "replayed", reason)


def _require(holds: bool, what: str, error: float | None = None) -> None:
    if not holds:
        size = "" if error is None else f" by {error:.1e}"
        raise _InexactError(f"{what}: not what plain forwards give{size}")


def _close(found: Tensor, expected: Tensor, what: str) -> None:
    error = relative_error(found, expected)
    _require(error <= _ROUNDING, what, error)


def _plain(model: EditableModel, ids: Sequence[int], **more: Any) -> Tensor:
    """Logits of one row, `[n_tokens, vocabulary]`."""
    with torch.no_grad():
        return model.model(input_ids=torch.tensor([ids]), use_cache=False, **more).logits[0]


def _check_answers(model: EditableModel) -> None:
    """Scores of rows of all lengths and of branches behind one prompt; greedy texts."""
    prompts = [case.request.text for case in toy_cases(2)] + ["Ana", "In town it is known that Ana"]
    continuations = ["baker", "pilot", "works as a baker", "judge", "Hiro Sato met Greta"]
    scores = [Score(prompt, said) for prompt in prompts for said in continuations]
    answers = answer_questions(model, scores, seed=0, token_budget=256)
    for question in scores:
        ids, own = model.tokens.encode_continuation(question.prompt, question.continuation)
        logits = _plain(model, [*ids, *own[:-1]])[len(ids) - 1 :].log_softmax(dim=-1)
        expected = logits[range(len(own)), own]
        _close(torch.tensor(answers[question].log_probs), expected, "scores")
    texts = [Generate(prompt, len(model.tokens.encode(prompt)) + _N_WRITTEN) for prompt in prompts]
    with torch.no_grad():
        written = generate_texts(model, texts, 0, 256, lambda n: None, top_k=1)
    for text in texts:
        ids = model.tokens.encode(text.prompt)
        for _ in range(_N_WRITTEN):
            ids.append(int(_plain(model, ids)[-1].argmax()))
        _require(written[text].text == model.tokens.decode(ids), "greedy texts")


def _check_text_keys(model: EditableModel) -> None:
    """Keys of ordinary text, of which second moments are made."""
    texts = [model.tokens.encode(text) for text in islice(toy_corpus().texts(), 4)]
    projections = {layer: model.architecture.projection(layer, "mlp") for layer in (0, 2)}
    for keys, owners in read_keys(model, projections, texts):
        for layer, path in projections.items():
            for owner in owners.unique().tolist():
                with capture(model.model, inputs_of=[path]) as seen:
                    _plain(model, texts[owner])
                expected = seen.inputs[path].reshape(-1, keys[layer].shape[-1])
                _close(keys[layer][owners == owner], expected, "keys of ordinary text")


def _check_offsets(model: EditableModel, requests: Sequence[EditRequest]) -> None:
    """Logits with offsets, in a padded batch, of rows of different lengths."""
    rows = [
        OffsetRow(tuple(row.token_ids) + (7,) * extra, row.subject_last, (row.subject_last, -1))
        for extra, row in enumerate(key_row(model.tokens, each, "So ") for each in requests)
    ]
    rows = [
        OffsetRow(row.token_ids, row.offset_position, (row.offset_position, len(row.token_ids) - 1))
        for row in rows
    ]
    offsets = torch.randn(2, model.architecture.d_model, generator=torch.Generator().manual_seed(0))
    for site in (OffsetSite.block_output(model, 1), OffsetSite.mlp_output(model, 1)):
        with torch.no_grad():
            found = FullForward(model, site, rows).logits(offsets)
        expected = []
        for row, offset in zip(rows, offsets, strict=True):
            place = row.offset_position

            def add(output: Tensor, place: int = place, offset: Tensor = offset) -> Tensor:
                moved = output.clone()
                moved[..., place, :] += offset
                return moved

            with intervene(model.model, {site.module: add}):
                logits = _plain(model, row.token_ids)
            expected.append(logits[list(row.read_positions)])
        _close(found, torch.cat(expected), f"logits with offsets of {site.module}")


def _check_sweep(model: EditableModel, requests: Sequence[EditRequest]) -> None:
    """Keys and hidden states of three layers while a weight changes."""
    sweep = LayerSweep(model, requests, _PREFIXES, "uniform", first=0, last=2)
    weight = model.model.get_submodule(model.architecture.projection(0, "mlp")).weight
    original = weight.clone()
    block = model.architecture.block(2)
    try:
        for layer in range(3):
            keys, hidden = sweep.measure(layer)
            path = model.architecture.projection(layer, "mlp")
            for index, request in enumerate(requests):
                seen_keys = []
                for prefix in _PREFIXES.flat:
                    ids = key_row(model.tokens, request, prefix).token_ids
                    with capture(model.model, inputs_of=[path], outputs_of=[block]) as seen:
                        _plain(model, ids)
                    seen_keys.append(seen.inputs[path].reshape(-1, keys.shape[1])[-1])
                    if not prefix:
                        output = seen.outputs[block][..., -1, :]
                        expected = output.reshape(-1, hidden.shape[1]).mean(dim=0)
                        _close(hidden[index], expected, "hidden states behind block 2")
                _close(keys[index], torch.stack(seen_keys).mean(dim=0), f"keys of layer {layer}")
            with torch.no_grad():
                weight += 0.1 * weight.roll(1, dims=0) * (layer == 0)
    finally:
        with torch.no_grad():
            weight.copy_(original)


def _edit(editor: type, model: EditableModel, requests: Sequence[EditRequest]) -> WeightEdit:
    config, _ = editor.default_config(model)
    config = config.updated({"n_steps": 4, "second_moment_tokens": 300}, "the trial")
    resources = Resources(seed=0, corpus=toy_corpus(), context_prefixes=_PREFIXES)
    return editor(config).edit(model, requests, resources)


@contextmanager
def _without_replay() -> Iterator[None]:
    def give_up(self: TargetOptimizer, tasks: object) -> None:
        self.replays = False

    with patch.object(TargetOptimizer, "_try_replay", give_up):
        yield


def _dense(update: Any) -> Tensor:
    return update if isinstance(update, Tensor) else update.left @ update.right.T
