"""How a stream went: what is kept of its checkpoints, and of every fact."""

from pydantic import BaseModel, ConfigDict, Field


class CheckpointRecord(BaseModel):
    """What is known of a stream after so many facts, besides its rows.

    Attributes:
        n_written: How many facts had been written.
        n_superseded: To how many of them a later one was written in their place; they are not asked
            any more.
        seconds: Stage (``edit``, ``answer``) to seconds since the checkpoint before.
        update_norms: ‖ΔW‖/‖W‖ of every weight that is written to, by its name.
        key_drift: ‖k - k₀‖/‖k₀‖ of keys since they were written, by layer: the mean over the facts
            of each batch, the oldest first; None for a batch that was not written there.
    """

    model_config = ConfigDict(frozen=True)

    n_written: int
    n_superseded: int = 0
    seconds: dict[str, float] = Field(default_factory=dict)
    update_norms: dict[str, float | None] = Field(default_factory=dict)
    key_drift: dict[str, tuple[float | None, ...]] = Field(default_factory=dict)


class FactRecord(BaseModel):
    """What became of a fact of a stream.

    Attributes:
        case_id: The case.
        batch: Which batch it was written in, from 0; the last one that said the same.
        status: ``written``, ``clamped``, ``stopped early``, ``skipped`` or ``superseded``; None if
            the editor does not say.
        why: Why it was skipped.
        superseded_by: The case that was written in its place.
    """

    model_config = ConfigDict(frozen=True)

    case_id: str
    batch: int
    status: str | None = None
    why: str | None = None
    superseded_by: str | None = None
