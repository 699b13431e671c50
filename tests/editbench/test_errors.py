"""What an error about an unknown name suggests, and what it never does."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editbench.errors import UnknownNameError, find_nearest

FACTS = ["subject", "prompt", "target", "target_true", "relation", "case_id", "paraphrases"]


@pytest.mark.parametrize(
    ("name", "available", "nearest"),
    [
        ("target_new", FACTS, "target"),  # not 'target_true': who follows that swaps the edit
        ("target_old", FACTS, "target"),
        ("targets", FACTS, "target"),
        ("tagret_true", FACTS, "target_true"),
        ("paraphrase", FACTS, "paraphrases"),
        ("sub ject", FACTS, "subject"),
        ("memt", ["memit", "mend"], "memit"),
        ("learning_rat", ["learning_rate", "learning_rate_unit"], "learning_rate"),
        ("first_true", ["last_true"], None),
        ("min_cases", ["max_cases"], None),
        ("edited", ["unedited"], None),
        ("unedited", ["edited"], None),
        ("encode", ["decode"], None),
        ("no_check", ["check"], None),
        ("with_noise", ["without_noise"], None),
        ("increase", ["decrease"], None),
        ("", FACTS, None),
        ("target", [], None),
    ],
)
def test_a_suggestion_is_a_slip_and_never_the_opposite(name, available, nearest):
    assert find_nearest(name, available) == nearest


@settings(deadline=None)
@given(st.sampled_from(FACTS), st.data())
def test_a_slip_of_one_letter_is_mended(name, data):
    places = [i for i, letter in enumerate(name) if letter != "_"]
    place = data.draw(st.sampled_from(places))
    slip = name[:place] + "z" + name[place + 1 :]
    assert find_nearest(slip, FACTS) == name


@settings(deadline=None)
@given(st.text(), st.lists(st.text(), max_size=5))
def test_any_names_can_be_compared(name, available):
    assert find_nearest(name, available) in {None, *available}


def test_names_of_other_tools_come_first():
    elsewhere = {"layers": "critical_layers", "fact_token": "it is always the last one", "x": "y"}
    available = ["critical_layers", "loss_layer"]

    def message(name):
        return str(UnknownNameError("field", name, available, elsewhere=elsewhere))

    assert "'layers'. Here it is called 'critical_layers'. Available" in message("layers")
    assert "'fact_token'. Not used: it is always the last one. Avail" in message("fact_token")
    assert "Did you mean 'loss_layer'?" in message("los_layer")
