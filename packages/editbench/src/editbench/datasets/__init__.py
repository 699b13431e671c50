"""Files into edit cases. Nothing here imports torch."""

from editbench.datasets.base import Dataset, FileDataset
from editbench.datasets.counterfact import CounterFact, CounterFactFull
from editbench.datasets.download import RemoteFile, fetch
from editbench.datasets.facts import Facts, read_facts
from editbench.datasets.flat import KnowEditDataset, QAEditDataset, WikiBigEditDataset
from editbench.datasets.mquake import MQuAKE, MQuAKERemastered
from editbench.datasets.ripple_edits import RippleEditsDataset
from editbench.datasets.zsre import ZsRE

__all__ = [
    "CounterFact",
    "CounterFactFull",
    "Dataset",
    "Facts",
    "FileDataset",
    "KnowEditDataset",
    "MQuAKE",
    "MQuAKERemastered",
    "QAEditDataset",
    "RemoteFile",
    "RippleEditsDataset",
    "WikiBigEditDataset",
    "ZsRE",
    "fetch",
    "read_facts",
]
