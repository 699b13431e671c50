"""What is said of facts before they are written: that such facts were found not to come out well.

The bounds are those of docs/how-to/many-facts-about-one-subject.md, which benchmarks/kinds_of_facts
measures: of editors that optimize an offset at the subject, MEMIT and its kin.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from editbench.requests import EditRequest

if TYPE_CHECKING:
    from editbench.editors.base import Editor
    from editbench.models.editable import EditableModel
    from editbench.runner.prepare import PreparedRun

_MOST_SHARED = 4  # facts about a subject that one offset was found to say
_LONGEST = 8  # tokens of an answer that was found to be said as a whole
# Of a benchmark's facts; with fewer the mean hardly moves.
_MANY = 0.2


def caution(
    model: "EditableModel", editor: "Editor", requests: Sequence[EditRequest], *, share: float = 0.0
) -> Iterator[str]:
    """What to say of facts that are to be written together.

    Args:
        model: The model; its tokenizer is asked.
        editor: Who writes them.
        requests: The facts.
        share: Of shared subjects it is said where at least so much of all facts has one.
    """
    config, name = editor.config, editor.name
    shares = getattr(config, "share_subjects", None)
    if shares is None:
        return
    about = Counter(request.subject for request in requests)
    n_sharing = sum(n for n in about.values() if n > 1)
    subject, n_most = about.most_common(1)[0]
    if n_sharing > share * len(requests):
        yield from _caution_sharing(name, shares, subject, n_most)
    lengths = [_count_tokens(model, request) for request in requests]
    if n_long := sum(length > _LONGEST for length in lengths):
        worst = requests[lengths.index(max(lengths))].case_id
        yield (
            f"{n_long} of {len(requests)} facts have answers of more than {_LONGEST} tokens, the "
            f"longest {max(lengths)} ({worst}). Such answers were found to begin well and end "
            "otherwise. Shorten them to what is new; --check shows what becomes of them."
        )


def _count_tokens(model: "EditableModel", request: EditRequest) -> int:
    """Tokens of an answer; of a short one at most as many as it has bytes."""
    n_bytes = len(request.target.encode())
    return (
        n_bytes if n_bytes <= _LONGEST else len(model.tokens.encode_question(request.question)[1])
    )


def _caution_sharing(name: str, shares: bool, subject: str, n_facts: int) -> Iterator[str]:
    if not shares:
        yield (
            f"{n_facts} facts are about {subject!r}. Facts about one subject come out better with "
            f"--set {name}.share_subjects=true: one offset that says them all, instead of one for "
            "each, of which the mean is written."
        )
    if n_facts > _MOST_SHARED:
        yield (
            f"{n_facts} facts about {subject!r} are many for one subject: {_MOST_SHARED} were "
            "found to work with a shared offset, and of 8 not even half. Leave out what matters "
            "less; --check shows what becomes of them."
        )


def caution_of_batches(
    model: "EditableModel", editor: "Editor", batches: Sequence[Sequence[EditRequest]]
) -> list[str]:
    """The same of batches that are written one after another: of the first that is worth it."""
    each = (list(caution(model, editor, requests)) for requests in batches)
    return next(filter(None, each), [])


def caution_of_run(run: "PreparedRun") -> Iterator[str]:
    """The same of all trials, each thing once; a few facts among many are not worth it.

    Of a stream's batches it is the first, which those after it are like.
    """
    written = {
        (id(trial.model), repr(trial.editor.config), tuple(requests)): trial
        for trial in run.prepared
        for requests in trial.writes[:1]
    }
    yield from dict.fromkeys(
        line
        for (_, _, requests), trial in written.items()
        for line in caution(trial.model, trial.editor, requests, share=_MANY)
    )
