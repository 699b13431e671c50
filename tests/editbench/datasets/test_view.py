"""A dataset asked as a chat, or with other text to read."""

import pytest
from tests.editbench.runner.toys import Toy

from editbench.datasets.corpus import text_file_corpus
from editbench.datasets.view import DatasetView
from editbench.errors import DataError


def test_chat_is_asked_for_in_requests_and_probes_alone():
    plain, view = Toy(), DatasetView(Toy(), as_chat=True)
    assert (view.name, len(view.cases())) == (plain.name, len(plain.cases()))
    assert view.fingerprint != plain.fingerprint
    for case, same in zip(view.cases(), plain.cases(), strict=True):
        assert (case.request.chat, same.request.chat) == (True, False)
        assert all(probe.chat for probe in case.probes)
        assert (case.request.text, case.request.target) == (same.request.text, same.request.target)


def test_held_out_text_takes_the_place_of_the_datasets(tmp_path):
    path = tmp_path / "ordinary.txt"
    path.write_text("It rained.\n\n= Weather\nalone\nThen it stopped.\n")
    view = DatasetView(Toy(), held_out=text_file_corpus(path))
    assert view.held_out_texts() == ("It rained.", "= Weather", "Then it stopped.")
    first = view.fingerprint
    path.write_text("It snowed.\n")
    assert DatasetView(Toy(), held_out=text_file_corpus(path)).fingerprint != first
    assert list(view.cases()) == list(Toy().cases())


def test_text_without_two_words_on_a_line_is_refused(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("one\ntwo\n")
    with pytest.raises(DataError, match="no line has two words"):
        DatasetView(Toy(), held_out=text_file_corpus(path)).held_out_texts()
