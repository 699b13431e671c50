import pytest

from editbench.models.editable import EditableModel
from editbench.testing import tiny_model


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model(n_layers=2)
