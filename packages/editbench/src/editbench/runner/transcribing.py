"""From answers to transcripts: what was asked about each case, and what the model said."""

from collections.abc import Iterable

from editbench.questions import Answers, Generate, GenerateAnswer, Score, ScoreAnswer
from editbench.requests import EditCase, Probe
from editbench.results.transcript import CaseTranscript, ProbeTranscript


def transcribe(cases: Iterable[EditCase], answers: Answers) -> list[CaseTranscript]:
    """Gather what the answers say about each case; questions that no metric asked are missing."""
    texts = {
        (question.prompt, question.chat): answer.text
        for question, answer in answers.items()
        if isinstance(question, Generate) and isinstance(answer, GenerateAnswer)
    }
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
    )


def _log_prob(question: Score, answers: Answers) -> float | None:
    answer = answers.get(question)
    return round(answer.mean_log_prob, 6) if isinstance(answer, ScoreAnswer) else None
