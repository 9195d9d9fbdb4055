"""What is known of each trial, as it comes in: lines of a file that survives any crash.

The driver alone writes it. A sweep that is started again reads it first; what Tune pickles is
never read back.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kdfm_ray.config import NO_FILE
from kdfm_ray.keys import recorded_hash, stages_hashes
from kdfm_ray.sweeps.space import Trial
from kdfm_ray.types import Role, UserError

Status = Literal["waiting", "running", "finished", "stopped", "failed"]
ENDED: tuple[Status, ...] = ("finished", "stopped", "failed")
TRIALS = "trials.jsonl"
KEPT = "suggestions.json"  # of Optuna


@dataclass
class Record:
    """What is known of a trial.

    Attributes:
        status: ``waiting`` also where a try was cut short.
        curve: update -> validation accuracy of the inner network.
        seconds: of wall time in the trial's process, all tries together.
        row: what a finished trial left, see ``trial.row_of``.
        why: of a failed one.
        elsewhere: taken from a file of results, nothing was computed here.
        networks: role -> key of those that come before the inner one.
        inner: key of the inner network; empty in folders of before it was noted.
        made: of a finished one: ``stages`` (see ``Cells``) and ``versions`` of packages that made
            it; empty in folders of before they were noted.
    """

    status: Status = "waiting"
    curve: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    row: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    elsewhere: bool = False
    networks: dict[str, str] = field(default_factory=dict)
    inner: str = ""
    made: dict[str, Any] = field(default_factory=dict)
    earlier_seconds: float = 0.0  # of tries before this one

    @property
    def val_accuracy(self) -> float | None:
        """The last one that is known."""
        if self.row.get("val_accuracy") is not None:
            found: float = self.row["val_accuracy"]
            return found
        return self.curve[max(self.curve)] if self.curve else None


class Ledger:
    """Records of all trials by id, and the file that they are kept in."""

    def __init__(self, folder: Path) -> None:
        """Read what an earlier try of the sweep has left in the folder."""
        self._path = folder / TRIALS
        self.records: dict[str, Record] = {}
        for line in _read_lines(self._path):
            self._apply(line)

    def begin(self) -> None:
        """A driver takes over: what ran when the last one died, or failed, waits again."""
        for trial, record in list(self.records.items()):
            if record.status in ("running", "failed"):  # what was wrong may be mended
                self.end(trial, "waiting")

    def of(self, trial: str) -> Record:
        """The record of a trial."""
        return self.records.setdefault(trial, Record())

    def start(self, trial: str, networks: Mapping[Role, str], inner: str) -> None:
        """A process has begun (or begun again) with the trial."""
        line = {"trial": trial, "event": "start", "networks": dict(networks), "inner": inner}
        self._note(line)

    def validation(self, trial: str, step: int, accuracy: float, seconds: float) -> None:
        """The trial reported; a trial that is resumed reports old ones anew."""
        if step not in self.of(trial).curve:
            line = {"step": step, "val_accuracy": accuracy, "seconds": seconds}
            self._note({"trial": trial, "event": "validation"} | line)

    def end(self, trial: str, status: Status, **facts: Any) -> None:
        """The trial is over; ``waiting``: for this time."""
        self._note({"trial": trial, "event": "end", "status": status} | facts)

    def _note(self, line: dict[str, Any]) -> None:
        self._apply(line)
        append_line(self._path, line)

    def _apply(self, line: dict[str, Any]) -> None:
        record = self.of(line["trial"])
        if line["event"] == "start":
            if record.inner not in ("", line.get("inner", "")):  # other images than in that try
                record.curve, record.seconds = {}, 0.0
            record.status, record.earlier_seconds = "running", record.seconds
            record.networks, record.inner = line["networks"], line.get("inner", "")
        elif line["event"] == "validation":
            record.curve[line["step"]] = line["val_accuracy"]
            record.seconds = record.earlier_seconds + line["seconds"]
        else:
            record.status = line["status"]
            record.row, record.why = line.get("row", {}), line.get("why", "")
            record.elsewhere, record.made = line.get("elsewhere", False), line.get("made", {})
            record.networks = line.get("networks", record.networks)
            if "seconds" in line:
                record.seconds = record.earlier_seconds + line["seconds"]


class Cells:
    """A file of finished cells, one a line, that is kept with the code and carried elsewhere.

    A line counts where config, seed and the versions of all stages are the same, or were others
    that gave the same accuracies. A file of pretrained weights counts by its content.
    """

    def __init__(self, path: Path | None, versions: dict[str, str]) -> None:
        """Read the file, if there is one; ``versions`` of packages go into new lines."""
        self._path, self._versions = path, versions
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}
        try:
            lines = _read_lines(path) if path is not None else []
        except OSError as error:
            raise self._unusable(error) from error
        for line in lines:
            self._rows[line.get("config_hash", ""), line.get("stages", "")] = line

    def check(self) -> None:
        """Open the file for writing, as ``add`` will.

        Raises:
            UserError: it cannot be written to.
        """
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.open("ab").close()
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> UserError:
        return UserError(
            f"the file of results {self._path} cannot be used: {error.strerror or error}; give "
            "another with --results FILE, or none with --results none"
        )

    def find(self, trial: Trial) -> dict[str, Any] | None:
        """The line of that trial: ``row``, ``curve``, ``seconds``; none where it is not there."""
        if not self._rows:
            return None
        name = recorded_hash(trial.config)
        found = (self._rows.get((name, stages)) for stages in stages_hashes(trial.config))
        return next((line for line in found if line is not None), None)

    def made(self, trial: Trial) -> dict[str, Any]:
        """What makes that trial's results just now: ``stages`` and ``versions``."""
        return {"stages": stages_hashes(trial.config)[0], "versions": self._versions}

    def add(self, trial: Trial, record: Record) -> bool:
        """Append a finished trial that is not there yet.

        Returns:
            Whether the file has it now: trials that other code has made are left out, and those
            of which that is not known.
        """
        if self._path is None or self.find(trial) is not None:
            return True
        name, stages = recorded_hash(trial.config), record.made.get("stages", "")
        if stages not in stages_hashes(trial.config):
            return False
        line = {
            "config_hash": name,
            "stages": stages,
            "seed": trial.seed,
            "values": _portable(trial.values),
            "row": record.row,
            "curve": record.curve,
            "networks": record.networks,
            "seconds": round(record.seconds, 1),
            "versions": record.made["versions"],
        }
        append_line(self._path, line)
        self._rows[name, stages] = json.loads(json.dumps(line))
        return True


def _portable(values: Mapping[str, Any]) -> dict[str, Any]:
    """A file of weights by its name: where it lies is this machine's affair."""
    weights = values.get("model.pretrained", "no")
    if weights in NO_FILE:
        return dict(values)
    return dict(values) | {"model.pretrained": Path(weights).name}


def take_cells(ledger: Ledger, cells: Cells, trials: Sequence[Trial]) -> int:
    """Count trials as finished that are in the file of results; returns how many."""
    taken = 0
    for trial in trials:
        found = cells.find(trial)
        if found is None or ledger.of(trial.id).status in ENDED:
            continue
        for step, accuracy in found["curve"].items():
            ledger.validation(trial.id, int(step), accuracy, 0.0)
        facts = {name: found[name] for name in ("row", "networks", "seconds") if name in found}
        ledger.end(trial.id, "finished", **facts, elsewhere=True)
        taken += 1
    return taken


def give_cells(ledger: Ledger, cells: Cells, trials: Sequence[Trial]) -> int:
    """Append what finished here and is not in the file, as after a crash between the two.

    Returns:
        How many trials are left out, see ``Cells.add``.
    """
    left_out = 0
    for trial in trials:
        record = ledger.of(trial.id)
        if record.status == "finished" and not record.elsewhere:
            left_out += not cells.add(trial, record)
    return left_out


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add a line of JSON and have it on the disk; a line cut short by a crash stays by itself."""
    with path.open("ab+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(line) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = []
    for row in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # cut short when a driver died
            line = json.loads(row)
            if isinstance(line, dict):
                lines.append(line)
    return lines
