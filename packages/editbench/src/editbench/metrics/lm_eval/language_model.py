"""The model as the harness asks it: the harness's tokens and rules, editbench's forward passes."""

import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from editbench.errors import RequestError
from editbench.models.editable import EditableModel
from editbench.models.out_of_memory import Halving
from editbench.models.passages import Passage
from editbench.models.scoring import run_passages

_ALL = 2**31  # the harness cuts no batches: `run_passages` does, by what the memory holds
_MOST_TOKENS = 256  # of a text, where a task does not say


class AskedModel:
    """What ``lm_eval`` calls a language model, made of an editable model as it stands.

    Prompts are tokenized, joined to what follows them and, where the model takes no more, cut at
    their beginnings by the harness's ``HFLM``. Its numbers therefore are the harness's, to the
    rounding of a forward pass. What edits of prompts put before a prompt stands before the
    harness's prompt as a whole, its solved examples included; texts that are read stay as they
    are.
    """

    rank, world_size = 0, 1

    def __init__(self, model: EditableModel, on_answered: Callable[[int], None]) -> None:
        from lm_eval.models.huggingface import HFLM

        self._model = model
        self._on_answered = on_answered
        self._n_cut = 0
        harness: Any = HFLM(
            pretrained=model.model,
            tokenizer=model.tokens.to_transformers(),
            max_length=model.max_positions,
            batch_size=_ALL,
        )
        harness._loglikelihood_tokens = self._score  # all else of it calls this
        self._harness = harness

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """The log probability of continuations, and whether all of their tokens are likeliest."""
        return self._harness.loglikelihood(self._preface(requests), disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """The log probability of whole texts."""
        return self._harness.loglikelihood_rolling(list(requests), disable_tqdm=True)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Texts that the model writes, up to where a task says."""
        prefaced = self._preface(requests)
        lengths = [len(self._harness.tok_encode(each.args[0])) for each in prefaced]
        n_written = max(int(each.args[1].get("max_gen_toks", _MOST_TOKENS)) for each in prefaced)
        self._check_room(n_written)
        order = sorted(range(len(prefaced)), key=lambda place: -lengths[place])
        memory = self._model.memory
        longest = max(lengths)
        n_rows = max(
            1,
            min(
                memory.tokens // longest, memory.text_tokens(memory.tokens) // (longest + n_written)
            ),
        )
        texts: dict[int, str] = {}
        halving = Halving(f"lm-eval: texts of '{self._model.name}'")
        for start in range(0, len(order), n_rows):
            done = start
            for some in halving.run(
                order[start : start + n_rows],
                lambda part: self._harness.generate_until(
                    [prefaced[place] for place in part], disable_tqdm=True
                ),
            ):
                texts.update(zip(order[done : done + len(some)], some, strict=True))
                done += len(some)
                self._on_answered(len(some))
        return [texts[place] for place in range(len(prefaced))]

    def warn_of_cuts(self) -> None:
        """Say how many prompts were longer than the model takes."""
        if self._n_cut:
            warnings.warn(
                f"metric 'lm-eval': {self._n_cut:,} prompts are longer than '{self._model.name}' "
                "takes, and lost their beginnings. Ask with fewer shots.",
                stacklevel=2,
            )

    def _preface(self, requests: Sequence[Any]) -> list[Any]:
        """The same behind what edits of prompts put before them; an empty prompt stays empty."""
        prefaced = []
        for request in requests:
            prompt, *more = request.args
            asked = self._model.as_asked(prompt) if prompt else prompt
            prefaced.append(SimpleNamespace(args=(asked, *more), task_name=request.task_name))
        return prefaced

    def _score(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """`HFLM._loglikelihood_tokens`: scores of tokens behind others."""
        passages = []
        for place, (text, context, continuation) in enumerate(requests):
            room = self._harness.max_length + 1 - len(continuation)
            if not continuation or room < 1:
                raise RequestError(
                    "metric 'lm-eval': a continuation has no token, or more than the model takes, "
                    f"got {text!r}; expected 1 to {self._harness.max_length}. Mend the task."
                )
            self._n_cut += len(context) > room
            passages.append(Passage(place, context[-room:], continuation))
        found: dict[int, Any] = {}
        with torch.no_grad():
            for some in run_passages(self._model, passages, self._model.memory.tokens):
                found.update(some)
                self._on_answered(len(some))
        ordered = (found[place] for place in range(len(passages)))
        return [(sum(answer.log_probs), all(answer.argmax)) for answer in ordered]

    def _check_room(self, n_written: int) -> None:
        limit = self._harness.max_length
        if n_written >= limit:
            raise RequestError(
                f"metric 'lm-eval': a text is to have too many tokens, got {n_written} on "
                f"'{self._model.name}', which takes {limit} with the prompt. Set max_gen_toks in "
                "the task's generation_kwargs."
            )
