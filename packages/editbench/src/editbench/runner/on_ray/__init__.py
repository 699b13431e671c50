"""Trials on a Ray cluster; needs the extra ``editbench[ray]``, and is imported on demand."""

from editbench.runner.on_ray.executor import RayExecutor
from editbench.runner.on_ray.needs import TaskNeeds

__all__ = ["RayExecutor", "TaskNeeds"]
