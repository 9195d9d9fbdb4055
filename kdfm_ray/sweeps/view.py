"""A sweep on the terminal: a line for each trial that ends, bars for those that run."""

from __future__ import annotations

import threading
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from kdfm_ray.report.live import TITLES
from kdfm_ray.types import Event

LINE_SECONDS = 30.0  # between lines on where things are, where there is no terminal


class SweepView:
    """Takes events of trials from any thread; a context manager."""

    def __init__(self, console: Console) -> None:
        """Write to ``console``."""
        self._console = console
        self._lock = threading.RLock()
        self._bars: dict[str, TaskID] = {}
        self._now: dict[str, dict[str, Any]] = {}
        self._told: set[str] = set()
        self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", style="dim"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> SweepView:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    @property
    def now(self) -> dict[str, dict[str, Any]]:
        """Where each running job is: ``stage``, ``step``, ``total``."""
        with self._lock:
            return {job: dict(where) for job, where in self._now.items()}

    def line(self, text: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self._progress.console.print(text, markup=False, soft_wrap=True)
            self._last_line = time.monotonic()

    def once(self, text: str) -> None:
        """Print a line that trials of one outer network would all print."""
        with self._lock:
            if text not in self._told:
                self._told.add(text)
                self.line(text)

    def begin(self, job: str) -> None:
        """A job has a process."""
        with self._lock:
            self._now[job] = {"stage": "starting", "step": 0, "total": None}
            if job not in self._bars:
                self._bars[job] = self._progress.add_task(
                    f"{job}: starting", total=None, numbers=""
                )

    def end(self, job: str) -> None:
        """Its process has no more to do with it."""
        with self._lock:
            self._now.pop(job, None)
            if (bar := self._bars.pop(job, None)) is not None:
                self._progress.remove_task(bar)

    def __call__(self, event: Event) -> None:
        """An event of a pipeline; ``trial`` says whose."""
        with self._lock:
            job, stage = event.get("trial", ""), event.get("stage", "")
            if "warning" in event:
                self.once(f"warning: {TITLES.get(stage, stage)}: {event['warning']}")
            if event.get("of") == "data":  # the same of all trials with one split
                self.once(event["note"])
            elif "note" in event:
                self.line(f"{job}: {event['note']}" if job else event["note"])
            if job not in self._now or stage not in TITLES:
                return
            where = self._now[job]
            if stage != where["stage"]:
                where |= {"stage": stage, "step": 0, "total": None}
            if "step" in event:
                where |= {"step": event["step"], "total": event.get("total")}
            numbers = ""
            if event.get("val_accuracy") is not None:
                numbers = f"validation {event['val_accuracy']:.1%}"
            title = f"{job}: {TITLES[stage]}"
            self._progress.update(
                self._bars[job], description=title, completed=where["step"], total=where["total"]
            )
            if numbers:
                self._progress.update(self._bars[job], numbers=numbers)
            if not self._console.is_terminal and time.monotonic() - self._last_line > LINE_SECONDS:
                self.line("; ".join(describe_now(self.now)))


def describe_now(now: dict[str, dict[str, Any]]) -> list[str]:
    """Where each running job is, in words."""
    lines = []
    for job, where in now.items():
        stage = TITLES.get(where["stage"], where["stage"])
        total = f" {where['step']}/{where['total']}" if where["total"] else ""
        lines.append(f"{job}: {stage}{total}")
    return lines
