"""Files into edit cases. Nothing here imports torch."""

from editbench.datasets.base import Dataset, FileDataset
from editbench.datasets.counterfact import CounterFact, CounterFactFull
from editbench.datasets.download import RemoteFile, fetch
from editbench.datasets.facts import Facts, read_facts
from editbench.datasets.flat import KnowEdit, QAEdit, WikiBigEdit
from editbench.datasets.mquake import MQuAKE, MQuAKERemastered
from editbench.datasets.ripple_edits import RippleEdits
from editbench.datasets.zsre import ZsRE

__all__ = [
    "CounterFact",
    "CounterFactFull",
    "Dataset",
    "Facts",
    "FileDataset",
    "KnowEdit",
    "MQuAKE",
    "MQuAKERemastered",
    "QAEdit",
    "RemoteFile",
    "RippleEdits",
    "WikiBigEdit",
    "ZsRE",
    "fetch",
    "read_facts",
]
