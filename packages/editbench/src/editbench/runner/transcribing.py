"""From answers to transcripts: what was asked about each case, and what the model said."""

from collections.abc import Sequence

from editbench.metrics.base import AnyMetric
from editbench.metrics.generation_match import probe_text
from editbench.metrics.portability import Portability, is_written, judge_probe
from editbench.metrics.probes import Ask, is_likeliest
from editbench.portability import PortabilityProbe, Query
from editbench.questions import (
    Answers,
    Before,
    Generate,
    GenerateAnswer,
    PlainQuestion,
    Question,
    ScoreAnswer,
    WriteAnswer,
)
from editbench.requests import EditCase, Probe
from editbench.results.transcript import (
    CaseTranscript,
    PortabilityTranscript,
    ProbeTranscript,
    QueryTranscript,
)
from editbench.runner.trial import CaseBatch


def transcribe(
    cases: Sequence[EditCase],
    asked: CaseBatch,
    metrics: Sequence[AnyMetric],
    answers: Answers,
) -> list[CaseTranscript]:
    """Gather what the answers say about each case; questions that no metric asked are missing.

    Args:
        cases: The cases, with all of their portability probes.
        asked: What was asked: those of the cases that are still so, and of their portability
            probes those that count.
        metrics: What was measured; without `Portability` those probes are left out.
        answers: To all that was asked.
    """
    texts = {
        (question.prompt, question.chat): answer.text
        for question, answer in answers.items()
        if isinstance(question, Generate) and isinstance(answer, GenerateAnswer)
    }
    counted = {case.request.case_id: case.portability for case in asked.cases}
    has_portability = any(isinstance(metric, Portability) for metric in metrics)
    return [
        CaseTranscript(
            case_id=case.request.case_id,
            relation=case.request.relation,
            subject=case.request.subject,
            prompt=case.request.text,
            target=case.request.target,
            target_true=case.target_true,
            probes=tuple(_transcribe_probe(probe, answers) for probe in case.probes),
            texts=tuple(
                (prompt, texts[prompt, case.request.chat])
                for prompt in case.generation_prompts
                if (prompt, case.request.chat) in texts
            ),
            portability=tuple(
                _transcribe_portability(probe, answers)
                if probe in counted.get(case.request.case_id, ())
                else _transcribe_masked(probe)
                for probe in case.portability
            )
            if has_portability
            else (),
        )
        for case in cases
    ]


def _transcribe_probe(probe: Probe, answers: Answers) -> ProbeTranscript:
    return ProbeTranscript(
        kind=probe.kind,
        prompt=probe.prompt,
        expected=probe.expected,
        alternative=probe.alternative,
        log_prob_expected=_log_prob(probe.question(probe.expected), answers),
        log_prob_alternative=None
        if probe.alternative is None
        else _log_prob(probe.question(probe.alternative), answers),
        text=_text(probe_text(probe), answers),
    )


def _transcribe_portability(probe: PortabilityProbe, answers: Answers) -> PortabilityTranscript:
    return PortabilityTranscript(
        kind=probe.kind,
        needs_all=probe.needs_all,
        accuracy=judge_probe(probe, answers, is_likeliest),
        generation=judge_probe(probe, answers, is_written),
        queries=tuple(_transcribe_query(each, answers, _as_it_is) for each in probe.queries),
        conditions=tuple(_transcribe_query(each, answers, Before) for each in probe.conditions),
    )


def _transcribe_masked(probe: PortabilityProbe) -> PortabilityTranscript:
    queries, conditions = (
        tuple(QueryTranscript(prompt=each.prompt, answers=each.answers) for each in some)
        for some in (probe.queries, probe.conditions)
    )
    return PortabilityTranscript(
        kind=probe.kind,
        needs_all=probe.needs_all,
        is_masked=True,
        queries=queries,
        conditions=conditions,
    )


def _transcribe_query(query: Query, answers: Answers, ask: Ask) -> QueryTranscript:
    scores = {
        question.continuation: log_prob
        for question in query.questions
        if (log_prob := _log_prob(ask(question), answers)) is not None
    }
    likeliest = max(scores, key=lambda answer: scores[answer], default=None)
    return QueryTranscript(
        prompt=query.prompt,
        answers=query.answers,
        answer=likeliest,
        log_prob=None if likeliest is None else scores[likeliest],
        is_likeliest=is_likeliest(query, answers, ask),
        text=_text(ask(probe_text(query)), answers),
        is_written=is_written(query, answers, ask),
    )


def _as_it_is(question: PlainQuestion) -> Question:
    return question


def _log_prob(question: Question, answers: Answers) -> float | None:
    answer = answers.get(question)
    return round(answer.mean_log_prob, 6) if isinstance(answer, ScoreAnswer) else None


def _text(question: Question, answers: Answers) -> str | None:
    answer = answers.get(question)
    return answer.text if isinstance(answer, WriteAnswer) else None
