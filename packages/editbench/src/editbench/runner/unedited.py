"""What the unedited model says: asked once for a whole grid, whichever trial wants to know first.

What a batch of questions holds decides the last bits of its answers. So the questions of all trials
of a grid are put onto questionnaires before anything is run, and each is asked and kept whole: a
run that was interrupted, or that is spread over machines, finds the same answers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from editbench.edits.card import package_versions
from editbench.files.cache_entries import JsonEntry, name_entry
from editbench.models.answering import answer_questions
from editbench.models.editable import EditableModel
from editbench.questions import (
    Answer,
    Answers,
    Diverge,
    DivergeAnswer,
    Generate,
    GenerateAnswer,
    PlainQuestion,
    Read,
    Score,
    ScoreAnswer,
    Write,
    WriteAnswer,
)
from editbench.runner.trial import CaseBatch

_SIZE = 4096  # questions that an interrupt can cost, and one task of a cluster
_WHAT = "answers of the unedited model"


@dataclass(frozen=True, eq=False)
class Questionnaire:
    """Questions that are put to an unedited model together.

    Attributes:
        seed: Decides what is sampled; None where nothing is.
        questions: The questions, each once.
    """

    seed: int | None
    questions: tuple[PlainQuestion, ...]

    def ask(
        self,
        model: EditableModel,
        *,
        cache: Path | None,
        token_budget: int | None,
        on_progress: Callable[[int, int], None],
    ) -> Answers:
        """Look the answers up in the cache folder, or ask the model and keep them there.

        Args:
            model: The model. Edits on it are taken off meanwhile.
            cache: The folder; None keeps nothing. Without room in it, a warning says so.
            token_budget: How many tokens to put to the model at once; None chooses by device.
            on_progress: Told the number of questions answered and of all.
        """
        token_budget = token_budget or model.memory.tokens
        name = self._file_name(model, token_budget)
        entry = None if cache is None else JsonEntry(cache / "answers" / name, _WHAT)
        if entry is not None and (known := entry.read(self._decode)) is not None:
            on_progress(len(known), len(known))
            return known
        with model.unedited(_WHAT):
            answers = answer_questions(
                model,
                self.questions,
                seed=self.seed or 0,
                token_budget=token_budget,
                on_progress=on_progress,
            )
        if entry is not None:
            entry.keep([asdict(answer) for answer in answers.values()])
        return answers

    def _file_name(self, model: EditableModel, token_budget: int) -> str:
        content = {
            "versions": package_versions(),
            "model": model.fingerprint,
            "tokenizer": model.tokens.fingerprint_of(
                chat=any(not isinstance(each, Read) and each.chat for each in self.questions)
            ),
            "device": model.device.type,
            "token_budget": token_budget,
            "seed": self.seed,
            "questions": [[type(each).__name__, *asdict(each).values()] for each in self.questions],
        }
        return f"{name_entry('answers', content)[:32]}.json.gz"

    def _decode(self, content: list[dict[str, Any]]) -> Answers:
        return {
            question: _decode(question, fields)
            for question, fields in zip(self.questions, content, strict=True)
        }


def make_questionnaires(
    asked: Sequence[tuple[EditableModel, int, tuple[CaseBatch, ...]]],
) -> list[tuple[Questionnaire, ...]]:
    """Put the questions of all trials onto questionnaires.

    Each question is asked once for a model and, where its answer is sampled, for a seed. The
    questionnaires depend on what is asked alone, not on the order of the trials.

    Args:
        asked: Model, seed and batches of all trials of the grid, those that are done included.

    Returns:
        For each trial, the questionnaires that together hold all of its questions.
    """
    # Most trials share their batches with others, which are looked at once.
    pools_of: dict[tuple[str, int, int], dict[tuple[str, int | None], set[PlainQuestion]]] = {}
    keys = [(model.fingerprint, seed, id(batches)) for model, seed, batches in asked]
    for key, (model, trial_seed, batches) in zip(keys, asked, strict=True):
        if key not in pools_of:
            pools: dict[tuple[str, int | None], set[PlainQuestion]] = {}
            for batch in batches:
                for question in (*batch.questions, *batch.before):
                    seed = trial_seed if isinstance(question, Generate) else None
                    pools.setdefault((model.fingerprint, seed), set()).add(question)
            pools_of[key] = pools
    together: dict[tuple[str, int | None], set[PlainQuestion]] = {}
    for pools in pools_of.values():
        for pool, questions in pools.items():
            together.setdefault(pool, set()).update(questions)
    made = {pool: list(_split(pool[1], questions)) for pool, questions in together.items()}
    needed = {
        key: tuple(
            questionnaire
            for pool, questions in pools.items()
            for questionnaire in made[pool]
            if not questions.isdisjoint(questionnaire.questions)
        )
        for key, pools in pools_of.items()
    }
    return [needed[key] for key in keys]


def _split(seed: int | None, questions: Iterable[PlainQuestion]) -> Iterable[Questionnaire]:
    """Prompts that begin alike stay together: much of a forward pass is shared by them."""
    ordered = tuple(sorted(questions, key=_order))
    for start in range(0, len(ordered), _SIZE):
        yield Questionnaire(seed, ordered[start : start + _SIZE])


def _order(question: PlainQuestion) -> tuple[str, str, str, str]:
    match question:
        case Score(prompt, continuation, joiner, chat):
            return "score", prompt, continuation, f"{joiner!r} {chat}"
        case Write(prompt, n_tokens, chat, sentence):  # beside the scores of its prompt
            return "score", prompt, "", f"{n_tokens:06d} {chat} {sentence}"
        case Generate(prompt, n_tokens, chat):
            return "generate", prompt, f"{n_tokens:06d}", str(chat)
        case Read(text):
            return "read", text, "", ""
        case Diverge(text, everywhere, chat):
            return "diverge", text, str(everywhere), str(chat)


def _decode(question: PlainQuestion, fields: dict[str, object]) -> Answer:
    if isinstance(question, Generate):
        return GenerateAnswer(str(fields["text"]))
    if isinstance(question, Write):
        return WriteAnswer(str(fields["text"]))
    if isinstance(question, Diverge) and isinstance(nats := fields["nats"], list):
        return DivergeAnswer(tuple(nats))
    log_probs, argmax = fields["log_probs"], fields["argmax"]
    if not isinstance(log_probs, list) or not isinstance(argmax, list):
        raise TypeError("no answer")
    return ScoreAnswer(tuple(log_probs), tuple(argmax))
