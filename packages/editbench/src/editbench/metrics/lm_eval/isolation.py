"""The harness at work: nothing in the terminal, and no trace in the global random state."""

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_TALKATIVE = ("lm_eval", "datasets", "huggingface_hub", "evaluate", "transformers", "httpx")
_SEED = 0


@contextmanager
def isolated() -> Iterator[None]:
    """Run code of ``lm_eval`` for the length of a ``with`` body.

    Its log, its progress bars and the warnings of what it uses are not shown. What it draws at
    random it always draws alike, and afterwards Python's, numpy's and torch's global generators
    are where they were.
    """
    with _quiet(), _own_random_state():
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    import datasets
    import lm_eval.api.task

    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    had_bars = datasets.are_progress_bars_disabled() is False
    # The harness wraps documents in a bar that no argument turns off.
    module: Any = lm_eval.api.task
    bar, module.tqdm = module.tqdm, lambda some, **_: some
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            for name in _TALKATIVE:
                warnings.filterwarnings("ignore", module=rf"{name}(\..*)?$")
            yield
    finally:
        module.tqdm = bar
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()


@contextmanager
def _own_random_state() -> Iterator[None]:
    has_gpu = torch.cuda.is_initialized()
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if has_gpu else ()):
        random.seed(_SEED)
        np.random.seed(_SEED)
        torch.default_generator.manual_seed(_SEED)
        if has_gpu:  # otherwise the seed would wait for the first use of a GPU
            torch.cuda.manual_seed_all(_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
