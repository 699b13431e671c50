"""Context prefixes: groups, weights, files, sampling."""

import json
import random

import pytest
import torch

from editbench.editors.context_prefixes import ContextPrefixes, sample_context_prefixes
from editbench.errors import ConfigError
from editbench.testing import tiny_model


def test_grouped_weights_give_the_bare_prompt_one_half() -> None:
    prefixes = ContextPrefixes((("",), ("a. ", "b. ", "c. ")))
    assert prefixes.flat == ("", "a. ", "b. ", "c. ")
    assert prefixes.weights("grouped") == pytest.approx((1 / 2, 1 / 6, 1 / 6, 1 / 6))


def test_uniform_weights_are_the_paper_s() -> None:
    prefixes = ContextPrefixes((("",), ("a. ", "b. ", "c. ")))
    assert prefixes.weights("uniform") == pytest.approx((1 / 4,) * 4)


def test_the_bare_prompt_may_have_any_share() -> None:
    prefixes = ContextPrefixes((("a. ", ""), ("b. ", "c. ")))
    assert prefixes.weights(0.4) == pytest.approx((0.2, 0.4, 0.2, 0.2))
    assert ContextPrefixes((("",),)).weights(0.4) == (1,)
    assert ContextPrefixes((("a. ", "b. "),)).weights(0.4) == (0.5, 0.5)


def test_a_file_is_read_as_it_stands(tmp_path) -> None:
    path = tmp_path / "prefixes.json"
    path.write_text(json.dumps([[""], ["Braces {} stay. "]]), encoding="utf-8")
    assert ContextPrefixes.read(path).groups == (("",), ("Braces {} stay. ",))


@pytest.mark.parametrize("content", ["[]", "[[]]", '["a"]', '[["a", 1]]', "{}", '"a"', "[[", ""])
def test_malformed_files_are_refused(tmp_path, content: str) -> None:
    path = tmp_path / "prefixes.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"context prefixes: .*prefixes\.json"):
        ContextPrefixes.read(path)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        ContextPrefixes.read(tmp_path / "nowhere.json")


def test_sampling_depends_on_the_seed_alone() -> None:
    model = tiny_model()
    before = torch.get_rng_state(), random.getstate()
    one = sample_context_prefixes(model, n_prefixes=5, lengths=(10,), seed=3)
    torch.manual_seed(99)
    again = sample_context_prefixes(model, n_prefixes=5, lengths=(10,), seed=3)
    other = sample_context_prefixes(model, n_prefixes=5, lengths=(10,), seed=4)
    assert one == again
    assert one != other
    assert random.getstate() == before[1]
    assert one.groups[0] == ("",)
    first_words = [prefix.split()[0] for prefix in one.groups[1]]
    assert len(first_words) == 5
    assert all(prefix.endswith(". ") and "\n" not in prefix for prefix in one.groups[1])
    for prefix, word in zip(
        one.groups[1], ("The", "Therefore", "Because", "I", "You"), strict=True
    ):
        assert prefix.startswith(word)


def test_no_prefixes_means_the_bare_prompt() -> None:
    prefixes = sample_context_prefixes(tiny_model(), n_prefixes=0, lengths=(10,), seed=0)
    assert prefixes.groups == (("",),)


def test_more_prefixes_than_first_words_differ() -> None:
    prefixes = sample_context_prefixes(tiny_model(), n_prefixes=8, lengths=(12,), seed=0)
    assert len(prefixes.groups[1]) == len(set(prefixes.groups[1])) == 8
