"""Trials on a Ray cluster; needs the extra ``editbench[ray]``, and is imported on demand."""

from editbench.runner.on_ray.cluster import TaskNeeds
from editbench.runner.on_ray.executor import RayExecutor

__all__ = ["RayExecutor", "TaskNeeds"]
