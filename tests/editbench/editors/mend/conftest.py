"""A tiny model, cases about it, and settings that train a hypernetwork in a second."""

import pytest

from editbench.editors.mend.training import DataOrigin, train_hypernetwork
from editbench.editors.mend.training_config import MendTraining
from editbench.testing import tiny_model, toy_cases

TRAINING = MendTraining(
    rank=4,
    learning_rate=1e-3,
    rate_learning_rate=1e-3,
    initial_rate=5e-3,
    batch_size=4,
    edits_at_once=2,
    max_steps=6,
    validation_interval=2,
    validation_cases=6,
)
DATA = DataOrigin("toy", "a" * 64)


def ignore(stage: str, done: int, total: int, note: str = "") -> None:
    """A progress that nobody looks at."""


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def cases():
    return toy_cases(24)


@pytest.fixture(scope="session")
def train(model, cases):
    """Trains on 18 cases and validates on 6."""

    def run(config=TRAINING, *, seed=0, report_progress=ignore, **options):
        return train_hypernetwork(
            model,
            cases[:18],
            cases[18:],
            config,
            DATA,
            seed=seed,
            report_progress=report_progress,
            **options,
        )

    return run


@pytest.fixture(scope="session")
def trained(train):
    return train()


@pytest.fixture(scope="session")
def settings():
    return TRAINING
