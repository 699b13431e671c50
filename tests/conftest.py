"""Settings and paths that every test shares."""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)  # tiny models: more threads only get in each other's way

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference vectors and real data beside the checkout; skips where it is not."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the reference vectors and data in {SHARED}")
    return SHARED
