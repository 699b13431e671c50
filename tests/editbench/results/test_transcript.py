import pytest

from editbench.errors import RunError
from editbench.results.transcript import (
    CaseTranscript,
    ProbeTranscript,
    encode_transcripts,
    read_transcripts,
)

ANA = CaseTranscript(
    case_id="1",
    relation="job",
    subject="Ana",
    prompt="Ana is a",
    target="poet",
    target_true="judge",
    probes=(
        ProbeTranscript(
            kind="efficacy",
            prompt="Ana is a",
            expected="poet",
            alternative="judge",
            log_prob_expected=-0.5,
            log_prob_alternative=-7.25,
        ),
        ProbeTranscript(kind="neighborhood", prompt="Bo is a", expected="baker"),
    ),
    texts=(("Ana", 'Ana <b>wrote</b> "verses"\nin Łódź'),),
)
BARE = CaseTranscript(case_id="2", subject="Bo", prompt="Bo is a", target="pilot", probes=())


def test_transcripts_come_back_as_they_were(tmp_path):
    path = tmp_path / "cases.jsonl.gz"
    path.write_bytes(encode_transcripts([ANA, BARE]))
    assert list(read_transcripts(path)) == [ANA, BARE]


def test_equal_transcripts_are_equal_bytes():
    assert encode_transcripts([ANA, BARE]) == encode_transcripts([ANA, BARE])


@pytest.mark.parametrize("content", [b"", b"no gzip", encode_transcripts([ANA])[:-9]])
def test_a_damaged_file_is_an_error_that_says_what_to_delete(tmp_path, content):
    path = tmp_path / "cases.jsonl.gz"
    if content:
        path.write_bytes(content)
    with pytest.raises(RunError, match=f"Delete the folder '{tmp_path}'"):
        list(read_transcripts(path))
