"""A plan: the stages of some pieces of work, and what they come to on a device."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from editbench.costs.machine import Machine
from editbench.costs.stage import StageCost, add_stages
from editbench.models.device_memory import GIB
from editbench.models.editable import EditableModel

_WIDTHS = (24, 9, 12, 10, 10)
HEADER = ("", "tokens", "operations", "memory", "time")
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of work on a model, such as a trial.

    Attributes:
        label: What it is.
        model: The model, with weights or without.
        stages: What it does.
    """

    label: str
    model: EditableModel
    stages: tuple[StageCost, ...]


@dataclass(frozen=True)
class Plan:
    """What is going to be computed.

    Attributes:
        work: The pieces of work.
        machines: How fast the device of each model is, by the model's identity; None where it is
            not there to be measured.
    """

    work: tuple[Work, ...]
    machines: Mapping[int, Machine | None]

    @classmethod
    def of(cls, work: Sequence[Work], cache: Path | None = None) -> "Plan":
        """Measure the devices that some work is for, unless the cache folder tells their speed."""
        models = {id(piece.model): piece.model for piece in work}
        machines = {
            key: Machine.find(model.size, model.device, model.model.dtype, cache)
            for key, model in models.items()
        }
        return cls(tuple(work), machines)

    @property
    def is_known(self) -> bool:
        """Whether every stage says what it costs."""
        return all(stage.is_known for piece in self.work for stage in piece.stages)

    def seconds(self, piece: Work, stages: Sequence[StageCost] | None = None) -> float | None:
        """About how long some work takes; None where the device is not there to be measured."""
        machine = self.machines[id(piece.model)]
        if machine is None:
            return None
        chosen = piece.stages if stages is None else stages
        return sum(machine.seconds(stage) for stage in chosen if stage.is_known)

    @property
    def total_seconds(self) -> float | None:
        """About how long all of it takes."""
        each = [self.seconds(piece) for piece in self.work]
        known = [seconds for seconds in each if seconds is not None]
        return sum(known) if len(known) == len(each) else None

    def summarize(self) -> Iterator[str]:
        """The plan in a line for each model."""
        models = {id(piece.model): piece for piece in self.work}
        for key, first in models.items():
            pieces = [piece for piece in self.work if id(piece.model) == key]
            stages = add_stages(stage for piece in pieces for stage in piece.stages)
            n_tokens = sum(stage.n_tokens for stage in stages if stage.is_known)
            line = (
                f"Plan for {first.model.name}: {_shorten(n_tokens)} tokens, "
                f"{describe_flops(_sum_flops(stages))}, "
                f"{_describe_peak(first.model, stages)}"
            )
            total = self.seconds(first, stages)
            if total is None:
                yield f"{line}."
                continue
            parts = [
                f"{stage.name} {_describe_time(self.seconds(first, [stage]))}"
                for stage in stages
                if stage.is_known
            ]
            yield f"{line}; at most about {_describe_time(total)}: {', '.join(parts)}."

    def describe(self) -> Iterator[str]:
        """The plan as lines of text: a table for each piece of work, and what it comes to."""
        if not self.work:
            yield "Nothing is left to be done."
            return
        for piece in self.work:
            yield piece.label
            yield _format(HEADER)
            for stage in piece.stages:
                *cells, chunks = self.describe_stage(piece, stage)
                yield f"{_format(cells)}  {chunks}".rstrip()
            yield ""
        yield from self.describe_total()

    def describe_stage(self, piece: Work, stage: StageCost) -> tuple[str, ...]:
        """A stage of a piece of work as cells below `HEADER`, and in which parts it is done."""
        if not stage.is_known:
            return (stage.name, "?", "?", "?", "?", stage.chunks)
        memory = piece.model.memory.weight_bytes[piece.model.device] + stage.n_peak_bytes
        return (
            stage.name,
            _shorten(stage.n_tokens),
            describe_flops(stage.n_flops + stage.n_double_flops),
            _describe_bytes(memory),
            _describe_time(self.seconds(piece, [stage])),
            stage.chunks,
        )

    def describe_total(self) -> Iterator[str]:
        """What all pieces of work come to, as sentences."""
        yield from self.summarize()
        for model in {id(piece.model): piece.model for piece in self.work}.values():
            stages = [s for piece in self.work if piece.model is model for s in piece.stages]
            yield from _warn_of_memory(model, stages)
        if self.total_seconds is None:
            yield "The device is not on this machine, so times are unknown."
        else:
            yield (
                "Times are estimates from a short measurement of this machine; edits that reach "
                "their goal early take less."
            )
        if not self.is_known:
            yield "Stages marked ? are left out of the sums."


def describe_flops(n_flops: float) -> str:
    """A number of floating-point operations, such as '3.1 PFLOP'."""
    return f"{_shorten(n_flops, separator=' ')}FLOP"


def _sum_flops(stages: Sequence[StageCost]) -> float:
    return sum(stage.n_flops + stage.n_double_flops for stage in stages if stage.is_known)


def _describe_peak(model: EditableModel, stages: Sequence[StageCost]) -> str:
    """Peak memory on each device; work is wherever blocks compute, at most all of it."""
    peak = max((stage.n_peak_bytes for stage in stages if stage.is_known), default=0)
    parts = []
    for device, n_bytes in model.memory.weight_bytes.items():
        total = n_bytes + (peak if device in model.memory.working_devices else 0)
        parts.append(f"{_describe_bytes(total)} on {device}")
    weights = _describe_bytes(model.size.n_weight_bytes)
    dtype = str(model.model.dtype).removeprefix("torch.")
    return f"peak {' and '.join(parts)} (weights in {dtype}: {weights})"


def _warn_of_memory(model: EditableModel, stages: Sequence[StageCost]) -> Iterator[str]:
    room = model.memory.room
    if room == math.inf:
        yield (
            f"How much memory {model.device} has is unknown, since it is not on this machine: the "
            "work is divided as if there were enough. Give --max-memory to plan for less."
        )
    worst = max((s for s in stages if s.is_known), key=lambda s: s.n_peak_bytes, default=None)
    if worst is not None and worst.n_peak_bytes > room:
        yield (
            f"Too large for {model.device}: '{worst.name}' needs "
            f"{_describe_bytes(worst.n_peak_bytes)} beside the weights, and there are "
            f"{_describe_bytes(room)}. Use --dtype bfloat16, --device-map auto, or another device."
        )


def _format(cells: Sequence[str]) -> str:
    first, *rest = cells
    numbers = (cell.rjust(width) for cell, width in zip(rest, _WIDTHS[1:], strict=True))
    return f"  {first.ljust(_WIDTHS[0])}{''.join(numbers)}".rstrip()


def _shorten(number: float, separator: str = "") -> str:
    """Three digits and a prefix: 12,345,678 → 12.3M."""
    index = 0
    while number >= 999.5 and index < len(_PREFIXES) - 1:
        number, index = number / 1000, index + 1
    digits = f"{number:.0f}" if number >= 99.95 or index == 0 else f"{number:.3g}"
    return f"{digits}{separator}{_PREFIXES[index]}"


def _describe_bytes(n_bytes: float) -> str:
    return f"{n_bytes / GIB:.1f} GiB" if n_bytes >= GIB / 10 else f"{n_bytes / 2**20:.0f} MiB"


def _describe_time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 1:
        return "< 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
