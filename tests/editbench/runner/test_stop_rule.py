"""Rules that end a stream."""

import pytest

from editbench.errors import ConfigError
from editbench.runner import StopRule


@pytest.mark.parametrize(
    ("text", "rule", "written"),
    [
        ("perplexity>1.1x", StopRule("perplexity", ">", 1.1, True), "perplexity>1.1x"),
        (" score < 50 ", StopRule("score", "<", 50.0, False), "score<50"),
        ("lm_eval/a/acc<.5", StopRule("lm_eval/a/acc", "<", 0.5, False), "lm_eval/a/acc<0.5"),
    ],
)
def test_rules_are_read_and_written(text: str, rule: StopRule, written: str) -> None:
    assert StopRule.parse(text) == rule
    assert str(rule) == written
    assert StopRule.parse(written) == rule


@pytest.mark.parametrize(
    "text", ["", "perplexity", "perplexity=3", "perplexity>", ">3", "a>b", "a>1xx"]
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--stop-when: no rule"):
        StopRule.parse(text)


def test_a_bound_is_crossed_on_its_side_alone() -> None:
    above, below = StopRule.parse("perplexity>1.5x"), StopRule.parse("score<50")
    assert above.judge(15.0, 10.0) is None
    assert above.judge(15.5, 10.0) == "perplexity 15.5 > 15, 1.5 times that of the unedited model"
    assert below.judge(50.0, 0.0) is None
    assert below.judge(49.5, 0.0) == "score 49.5 < 50"
