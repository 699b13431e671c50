"""What a task asks of the cluster, and what it may fill of the machine that it runs on."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from editbench.costs.answers import estimate_answers
from editbench.costs.stage import ExpectedCache
from editbench.models.device_memory import GIB
from editbench.models.editable import EditableModel
from editbench.progress import report_nothing
from editbench.runner.prepare import PreparedTrial

# Batches leave some of a model's room, and collected matrices count against what they take of it:
# in the bytes of the plan alone there would be no place for the last of its batches.
_ROOM_FOR_PLANNED = 1.25

Resources = Mapping[str, float]
"""What a machine has, by Ray's names."""


@dataclass(frozen=True)
class TaskNeeds:
    """What Ray sets aside for a task; None chooses by trial and machine.

    Attributes:
        cpus: Processor cores, which are torch's threads as well.
        gpus: GPUs; a task that has one, or a part of one, computes there.
        memory: GiB of main memory.
    """

    cpus: int | None = None
    gpus: float | None = None
    memory: float | None = None

    def settle(
        self, work: PreparedTrial, nodes: Sequence[Resources], token_budget: int | None = None
    ) -> dict[str, float]:
        """Choose what is left open, for the tasks of a trial.

        As many cores as torch has threads here, if a machine has so many; one GPU if the model is
        on one here; and memory for the weights, for what the trial is planned to take beside them,
        and a gibibyte for the process. Where that is not planned, or is on a GPU, it is the weights
        a second time.

        Returns:
            Options of a Ray task; the memory in bytes.
        """
        most_cpus = max((int(node.get("CPU", 0)) for node in nodes), default=1)
        on_gpu = work.model.device.type == "cuda"
        gpus = float(on_gpu) if self.gpus is None else self.gpus
        memory = (
            _choose_memory(work, nodes, token_budget, on_gpu=gpus > 0)
            if self.memory is None
            else round(self.memory * GIB)
        )
        return {
            "num_cpus": self.cpus or max(1, min(torch.get_num_threads(), most_cpus)),
            "num_gpus": gpus,
            "memory": memory,
        }


def estimate_peak(
    work: PreparedTrial, nodes: Sequence[Resources], token_budget: int | None = None
) -> float | None:
    """What a trial takes beside the weights at its worst moment, on the largest of the machines.

    Nothing is taken from a cache: the worker may have none, or another.

    Returns:
        Bytes; None where the editor does not say, or planning fails.
    """
    model, largest = work.model, _largest_memory(nodes)
    limit = largest - GIB if largest > GIB else None  # a gibibyte is what the process takes
    batch = max(work.batches, key=lambda batch: len(batch.cases))
    requests = max(work.writes, key=len)
    resources = work.inputs.resources(work.seed, None, report_nothing)
    try:
        with (
            model.memory.narrowed(limit),
            warnings.catch_warnings(action="ignore"),  # the trial will warn of the same
        ):
            stages = [
                *work.editor.estimate(model, requests, resources, ExpectedCache()),
                *estimate_answers(
                    model,
                    batch.questions,
                    token_budget,
                    preface=work.editor.preface(batch.requests),
                ),
            ]
    except Exception:  # a trial that cannot be planned may fail too, and says so itself
        return None
    if not all(stage.is_known for stage in stages):
        return None
    return max((stage.n_peak_bytes for stage in stages), default=0.0)


def limit_memory(model: EditableModel, *, memory: float, gpus: float) -> None:
    """Make a worker's model size its batches by the task's share, not by all that is free.

    Tasks that run side by side would each take what is free when they look. A share of main memory
    that does not hold the weights, in bytes, is nothing to go by, and changes nothing; nor does a
    whole GPU.
    """
    if gpus >= 1:
        return
    share = gpus * _gpu_bytes(model.device) if gpus > 0 else memory
    beside = share - model.memory.weight_bytes[model.device]
    if beside <= 0 and gpus == 0:
        return
    # Python and torch, or the kernels on a GPU, need some of it themselves.
    model.memory.narrow(int(share - max(0, min(GIB, beside / 2))))


def list_nodes() -> list[Resources]:
    """The machines of the cluster that is joined."""
    import ray

    nodes: list[dict[str, Resources]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def count_places(options: Mapping[str, float], nodes: Sequence[Resources]) -> int:
    """How many tasks find what they need at once, where nothing else is done."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    wanted = {names[option]: amount for option, amount in options.items() if amount > 0}
    return sum(
        int(min(node.get(name, 0) / amount for name, amount in wanted.items())) for node in nodes
    )


def name_needs(options: Mapping[str, float]) -> str:
    """What a message calls the needs of a task."""
    return (
        f"{options['num_cpus']:g} cores, {options['num_gpus']:g} GPUs and "
        f"{options['memory'] / GIB:.1f} GiB"
    )


def _choose_memory(
    work: PreparedTrial, nodes: Sequence[Resources], token_budget: int | None, *, on_gpu: bool
) -> int:
    n_weights = sum(p.numel() * p.element_size() for p in work.model.model.parameters())
    peak = None if on_gpu else estimate_peak(work, nodes, token_budget)
    if peak is None:
        return 2 * n_weights + GIB
    # Where a machine has just what is planned, the trial can run there, in smaller batches.
    at_least = n_weights + GIB + round(peak)
    comfortable = n_weights + GIB + round(_ROOM_FOR_PLANNED * peak)
    return min(comfortable, max(at_least, _largest_memory(nodes)))


def _largest_memory(nodes: Sequence[Resources]) -> int:
    return max((int(node.get("memory", 0)) for node in nodes), default=0)


def _gpu_bytes(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory)
