"""The folder of one run: what it was asked, what it measured, and the network it made."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

from kdfm_ray.config import NOT_IN_HASH, Config
from kdfm_ray.resolve import Found, read_found
from kdfm_ray.store import Artifact
from kdfm_ray.types import Event, UserError

ROLES = ("baseline", "outer", "longer", "inner")
BEGUN, REPORT = "begun.json", "report.json"
LATER_STAGES = ("select.", "inner.")  # settings that no earlier stage depends on


class RunFolder:
    """``config.yaml``, ``split.npz``, ``metrics.jsonl``, TensorBoard files, the model, the report.

    The store's artifacts are the truth; metrics are written here as they arrive and completed
    from the artifacts, so nothing is missing where a stage was reused or an event was lost.
    """

    def __init__(self, path: Path, config: Config) -> None:
        """Open the folder for a run with this config; nothing is written yet.

        Raises:
            UserError: the folder holds a run with another config, or other files. An unfinished
                run may be gone on with when only settings of later stages are others.
        """
        self.path, self._config = path, config
        self._written: set[tuple[str, int, bool]] = set()  # (stage, step, is it a validation)
        self._lock = threading.RLock()
        self._tensorboard: Any = None
        self._failed = False  # to write a line
        self._refused = False  # by open: what lies in the folder is another's
        self.note = _check_same_run(path, config)  # what is different from an unfinished run here

    def open(self, begun: dict[str, Any] | None = None) -> None:
        """Make the folder and save the config; metrics of an earlier try stay.

        Args:
            begun: what the run is made of and begins with: the store, and keys by what they are of.

        Raises:
            UserError: the run in the folder was made of something else, though its config is the
                same; says what.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._refused = True
        _check_same_start(self.path, begun or {})
        self._refused = False
        # The config first: a folder without one holds no run.
        write_whole(self.path / "config.yaml", self._config.to_yaml())
        write_whole(self.path / BEGUN, json.dumps(begun or {}, indent=1) + "\n")
        roles = ROLES[:-1] if self.note else ROLES  # the inner network is another then
        lines = [line for line in read_lines(self.path) if line["stage"] in roles]
        with self._lock:
            text = "".join(json.dumps(line) + "\n" for line in lines)
            write_whole(self.path / "metrics.jsonl", text)
            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
            for line in lines:
                self._plot(line)

    @property
    def begun_with(self) -> str | None:
        """Precision and layout that an earlier try of this run was begun with."""
        return _read_begun(self.path).get("numerics")

    @property
    def found(self) -> Found | None:
        """What an earlier try of this run found for open fields of its config."""
        return read_found(_read_begun(self.path).get("found"))

    def log(self, event: Event) -> str | None:
        """Write a progress event that carries metrics; others are none of its business.

        Returns:
            What is wrong where it could not be written, the first time; the line is written when
            its network is finished.
        """
        if event.get("stage") not in ROLES or not ("loss" in event or "val_accuracy" in event):
            return None
        with self._lock:
            if _line_key(event) in self._written:  # workers that start again report anew
                return None
            try:
                self._write({key: value for key, value in event.items() if key != "total"})
            except OSError as error:
                first, self._failed = not self._failed, True
                return f"metrics cannot be written to {self.path} now ({error})" if first else None
        return None

    def complete(self, network: Artifact) -> None:
        """Write those lines of a finished network that were not seen live."""
        text = (network.path / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        with self._lock:
            for line in lines:
                if _line_key(line) not in self._written:
                    self._write(line)

    def finish(self, artifacts: dict[str, Artifact], report: dict[str, Any]) -> None:
        """Copy the split and the inner network here, and write the report last."""
        networks = [artifacts[role] for role in ROLES if role in artifacts]
        lines = "".join((network.path / "metrics.jsonl").read_text() for network in networks)
        write_whole(self.path / "metrics.jsonl", lines)  # in order, whatever was seen live
        shutil.copyfile(artifacts["split"].path / "split.npz", self.path / "split.npz")
        for name in ("model.safetensors", "model.json"):
            shutil.copyfile(artifacts["inner"].path / name, self.path / name)
        _add_to_json(
            self.path / "model.json",
            {
                "classes": report["data"]["classes"],
                "preprocessing": {
                    "layout": "uint8 [N, C, H, W]; normalization is inside the network",
                    "resize": "shorter side to image_size, then center crop",
                },
            },
        )
        write_whole(self.path / REPORT, json.dumps(report, indent=1) + "\n")
        self.close()

    @property
    def may_be_left(self) -> bool:
        """Whether a run that ends early may write here: no finished run's report is replaced."""
        return not (self._refused or _is_finished(self.path))

    def leave(self, report: dict[str, Any]) -> None:
        """Write the report of a run that ended early, as far as it goes."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / BEGUN).exists():  # so early that ``open`` was not called
            write_whole(self.path / "config.yaml", self._config.to_yaml())
        write_whole(self.path / REPORT, json.dumps(report, indent=1) + "\n")

    def close(self) -> None:
        """Flush what is still open; nothing is plotted any more."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None

    def _write(self, line: dict[str, Any]) -> None:
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._plot(line)

    def _plot(self, line: dict[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        if self._tensorboard is None:
            self._tensorboard = SummaryWriter(str(self.path / "tensorboard"))
        for name, value in line.items():
            if isinstance(value, int | float) and name != "step":
                self._tensorboard.add_scalar(f"{line['stage']}/{name}", value, line["step"])
        self._written.add(_line_key(line))


def _line_key(line: dict[str, Any]) -> tuple[str, int, bool]:
    return line["stage"], line["step"], "val_accuracy" in line


def _check_same_run(path: Path, config: Config) -> str:
    saved = path / "config.yaml"
    if not saved.is_file():
        if path.is_dir() and any(path.iterdir()):
            raise UserError(
                f"{path} holds other files and no run: give a new or an empty folder with --out"
            )
        return ""
    before = Config.from_yaml(saved)
    if before.hash() == config.hash():
        return ""
    old, new = (
        flat(each.model_dump(mode="json", exclude=NOT_IN_HASH)) for each in (before, config)
    )
    changed = {
        name: f"{name} was {old.get(name)!r}, is {new[name]!r}"
        for name in new
        if new[name] != old.get(name)
    }
    finished = _is_finished(path)
    if not finished and not (path / BEGUN).exists() and not (path / "metrics.jsonl").exists():
        return ""  # it failed before there was anything to go on from
    if not finished and all(name.startswith(LATER_STAGES) for name in changed):
        return f"going on with the unfinished run in {path}; {'; '.join(changed.values())}"
    kind = "a run" if finished else "an unfinished run"
    raise UserError(
        f"{path} holds {kind} with another config ({'; '.join(changed.values())}): give another "
        "folder with --out (stages that both have in common are not done again), or delete that one"
    )


def read_report(path: Path) -> dict[str, Any] | None:
    """The content of ``report.json``; ``None`` where there is none.

    Raises:
        UserError: it is damaged.
    """
    file = path / REPORT
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is damaged: it holds no JSON object")
    return found


def _is_finished(path: Path) -> bool:
    """Whether there is a report of a run that came to its end, damaged or not."""
    try:
        report = read_report(path)
    except UserError:
        return True
    return report is not None and bool(report.get("finished", True))


def _check_same_start(path: Path, begun: dict[str, Any]) -> None:
    before = _read_begun(path)
    changed = [name for name in begun if name in before and begun[name] != before[name]]
    if not changed:
        return
    told = {
        "store": f"the store was {before.get('store')}, is {begun.get('store')}",
        "images": "the images are others (names, sizes or times of files), or are read otherwise",
        "split": "the split is another",
        "numerics": f"precision and layout were {before.get('numerics')}, are "
        f"{begun.get('numerics')}",
        "outer network": "the file of weights, or the code that trains, is another",
        "found": "fields that the config leaves open were filled from other findings",
        "resolved": "fields that the config leaves open were filled otherwise",
    }
    raise UserError(
        f"{path} holds a run of the same config that cannot be gone on with: "
        f"{told[changed[0]]}. Give another folder with --out, or delete that one"
    )


def _read_begun(path: Path) -> dict[str, Any]:
    """What an earlier try noted; nothing where there was none, or where it is damaged."""
    try:
        found = json.loads((path / BEGUN).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Metrics of an earlier try, without a last line that was cut short, each once."""
    try:
        text = (path / "metrics.jsonl").read_text()
    except OSError:
        return []
    found: dict[tuple[str, int, bool], dict[str, Any]] = {}
    for row in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            line = json.loads(row)
            found.setdefault(_line_key(line), line)
    return list(found.values())


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _add_to_json(path: Path, values: dict[str, Any]) -> None:
    write_whole(path, json.dumps(json.loads(path.read_text()) | values, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
