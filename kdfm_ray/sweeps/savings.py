"""What sharing and early stopping have saved, against running every trial in full by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from kdfm_ray.sweeps.ledger import ENDED, Record
from kdfm_ray.sweeps.space import Trial
from kdfm_ray.types import Role


@dataclass(frozen=True)
class Savings:
    """In updates of networks, which are counted, and in seconds, which are estimated from them.

    Attributes:
        done: updates of this sweep's networks, each once, wherever they were trained.
        shared: updates that trials did not repeat, as their outer networks were the same.
        stopped: updates that stopped trials did not do.
        seconds_shared: the same in seconds, by what those networks took; ``None`` if unknown.
        seconds_stopped: by what an update of a finished inner network took.
    """

    done: int
    shared: int
    stopped: int
    seconds_shared: float | None
    seconds_stopped: float | None

    @property
    def full(self) -> int:
        """Updates without sharing and stopping."""
        return self.done + self.shared + self.stopped


def savings(
    trials: Sequence[Trial],
    records: Mapping[str, Record],
    seconds_of: Mapping[str, float],
) -> Savings:
    """Count over the trials that have ended.

    Args:
        trials: all.
        records: by trial id.
        seconds_of: key -> seconds that the training of that network took.
    """
    done = shared = stopped = 0
    seconds_shared = 0.0
    seen: set[str] = set()
    known, seconds_per_update = True, []
    for trial in trials:
        record, steps = records.get(trial.id, Record()), trial.config.steps_of("inner")
        if record.status not in ENDED or record.status == "failed":
            continue
        for role, key in record.networks.items():
            own = trial.config.steps_of(cast(Role, role))
            if key in seen:
                shared += own
                known &= key in seconds_of
                seconds_shared += seconds_of.get(key, 0.0)
            else:
                seen.add(key)
                done += own
        reached = steps if record.status == "finished" else max(record.curve, default=0)
        done += reached
        stopped += steps - reached
        if record.status == "finished" and record.row.get("inner_seconds"):
            seconds_per_update.append(record.row["inner_seconds"] / steps)
    each = sum(seconds_per_update) / len(seconds_per_update) if seconds_per_update else None
    return Savings(
        done,
        shared,
        stopped,
        seconds_shared if known else None,
        None if each is None else each * stopped,
    )


def describe(found: Savings) -> list[str]:
    """The same in sentences; nothing where nothing has ended."""
    if not found.full:
        return []

    def percent(part: int) -> str:
        return f"{part / found.full:.0%}"

    def minutes(seconds: float | None) -> str:
        return "" if not seconds else f", about {seconds / 60:.1f} minutes of training"

    lines = [
        f"{found.done:,} updates of networks, {percent(found.done)} of the {found.full:,} that the "
        "trials take when each trains all its networks in full",
        f"saved by sharing outer networks: {found.shared:,} updates ({percent(found.shared)})"
        f"{minutes(found.seconds_shared)}",
    ]
    if found.stopped:
        lines.append(
            f"saved by stopping trials early: {found.stopped:,} updates ({percent(found.stopped)})"
            f"{minutes(found.seconds_stopped)}"
        )
    return lines


def to_json(found: Savings) -> dict[str, Any]:
    """For ``sweep.json``."""
    return {
        "updates_done": found.done,
        "updates_full": found.full,
        "updates_saved_by_sharing": found.shared,
        "updates_saved_by_stopping": found.stopped,
        "seconds_saved_by_sharing": found.seconds_shared,
        "seconds_saved_by_stopping": found.seconds_stopped,
    }
