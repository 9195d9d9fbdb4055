"""The live view: one progress bar per stage on a terminal, a line at intervals elsewhere."""

from __future__ import annotations

import threading
import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from kdfm_ray.report.verdict import duration
from kdfm_ray.types import Event

TITLES = {
    "data": "data and split",
    "baseline": "labeled-only network",
    "outer": "FixMatch (outer) network",
    "longer": "FixMatch, updates of both",
    "label": "pseudo labels",
    "select": "trusted subset",
    "inner": "KD-FixMatch (inner) network",
    "evaluate": "test set",
    "pictures": "pictures for the report",
    "predict": "predictions",
}
LINE_SECONDS = 15.0  # between lines of a stage where there is no terminal


class LiveView:
    """Takes progress events from any thread; a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        """Write to ``console``, by default standard output."""
        self.console = console or Console(highlight=False)
        self._lock = threading.RLock()  # a signal may come while it is held
        self._bars: dict[str, TaskID] = {}
        self._numbers: dict[str, dict[str, str]] = {}  # of each stage, the newest of each kind
        self._done: dict[str, int] = {}
        self._pace: dict[str, _Pace] = {}
        self._finished: set[str] = set()
        self._warned: set[str] = set()
        self._last_line = 0.0
        self._progress = Progress(
            TextColumn("{task.description:<27}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            # Rich's own column forgets after 30 s, and some updates take longer.
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[numbers]}", style="dim"),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> LiveView:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show an event; those of unknown stages are passed over."""
        with self._lock:
            stage, state = event.get("stage", ""), event.get("state")
            if "note" in event:
                self._line(event["note"])
            if stage not in TITLES:
                return
            if state == "reused":
                self._line(f"{TITLES[stage]}: done before, reused from the store")
            elif state == "start":
                self._bar(stage)
            elif "waiting" in event:
                self._line(f"{TITLES[stage]}: {event['waiting']}")
            elif "warning" in event:
                self._warn(f"warning: {TITLES[stage]}: {event['warning']}")
            elif "resumed" in event:
                self._bar(stage, event["total"])
                self._line(f"{TITLES[stage]}: going on after update {event['resumed']}")
            elif stage in self._finished:
                return  # an event may come after its stage's end
            elif state in ("trained", "done"):
                self._finish(stage, event)
            else:
                self._advance(stage, event)

    def _bar(self, stage: str, total: int | None = None) -> TaskID:
        if stage not in self._bars:
            title = TITLES[stage]
            self._bars[stage] = self._progress.add_task(title, total=total, numbers="", left="")
            self._done[stage] = 0
            self._numbers[stage] = {}
            self._pace[stage] = _Pace()
            self._plain(f"{TITLES[stage]}: begins")
        return self._bars[stage]

    def _advance(self, stage: str, event: Event) -> None:
        bar, total = self._bar(stage), event.get("total")
        self._done[stage] = event.get("step", self._done[stage] + event.get("advance", 0))
        self._numbers[stage] |= _numbers(event)
        numbers = "  ".join(self._numbers[stage].values())
        left = self._pace[stage].left(self._done[stage], total)
        left = left and f"about {left} left"
        done = self._done[stage]
        self._progress.update(bar, completed=done, total=total, numbers=numbers, left=left)
        if time.monotonic() - self._last_line > LINE_SECONDS:
            parts = [f"{TITLES[stage]}: {done}/{total}", numbers, left]
            self._plain("  ".join(filter(None, parts)))

    def _finish(self, stage: str, event: Event) -> None:
        bar = self._bar(stage)
        done = self._done[stage] or 1
        if stage == "data":
            done, numbers = 1, _data_numbers(event)
        else:
            numbers = "  ".join(self._numbers[stage].values())
        self._progress.update(bar, completed=done, total=done, numbers=numbers, left="")
        self._progress.stop_task(bar)
        self._finished.add(stage)
        took = duration(self._pace[stage].seconds)
        self._plain(f"{TITLES[stage]}: done after {took}  {numbers}")
        if "numerics" in event:
            self._line(_numerics(event["numerics"]))

    def _warn(self, text: str) -> None:
        """Once each: a worker says it when it happens, the pipeline when the stage is over."""
        if text not in self._warned:
            self._warned.add(text)
            self._line(text)

    def _line(self, text: str) -> None:
        if self.console.is_terminal:
            self._progress.console.print(text, markup=False)
        else:
            self._plain(text)

    def _plain(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text.rstrip(), soft_wrap=True, markup=False)
            self._last_line = time.monotonic()


class _Pace:
    """How fast a stage goes, from the first sign of progress on: what was resumed took no time."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._first: tuple[float, int] | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def left(self, done: int, total: int | None) -> str:
        """The time that is left, in words; nothing where it cannot be told yet."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        since, before = self._first
        if total is None or not before < done < total or now <= since:
            return ""
        return duration((total - done) * (now - since) / (done - before))


def _numbers(event: Event) -> dict[str, str]:
    """The few numbers that a person watches, in words, by name."""
    shown: dict[str, str] = {}

    def add(name: str, text: str, form: str) -> None:
        value: Any = event.get(name)
        if value is not None:
            shown[name] = f"{text} {format(value, form)}"

    add("loss", "loss", ".3f")
    add("mask_rate", "mask", ".0%")
    add("images_per_second", "images/s", ",.0f")
    add("val_accuracy", "validation", ".1%")
    add("changed", "changed", ".2%")
    return shown


def _numerics(how: dict[str, Any]) -> str:
    """The choice of precision and layout, and what it was chosen by."""
    text = f"precision and layout: {how['choice']} ({how['how']}"
    if "measured" in how:
        times = (f"{row['numerics']} {row['seconds']:.3f} s" for row in how["measured"])
        text += f"; an update: {', '.join(times)}"
    if "compile_error" in how:
        text += f"; torch.compile fails here: {how['compile_error']}"
    return text + ")"


def _data_numbers(event: Event) -> str:
    if "num_labeled" not in event:
        return ""
    test = event["num_test"]
    return (
        f"{event['num_labeled']:,} labeled  {event['num_unlabeled']:,} unlabeled  "
        f"{event['num_val']:,} validation  {'no' if test is None else f'{test:,}'} test"
    )
