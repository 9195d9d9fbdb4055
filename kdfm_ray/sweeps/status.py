"""Where a sweep is, read from its folder: while it runs, or after it died."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from kdfm_ray.report.place import is_uri, read_folder
from kdfm_ray.report.table import percent
from kdfm_ray.sweeps.folder import NOW, SWEEP, is_running
from kdfm_ray.sweeps.ledger import TRIALS
from kdfm_ray.sweeps.page import PAGE, short
from kdfm_ray.sweeps.run import SweepResult
from kdfm_ray.sweeps.savings import describe
from kdfm_ray.sweeps.view import describe_now
from kdfm_ray.types import UserError

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 10  # settings


def print_status(place: str, console: Console) -> None:
    """How many trials are where, which ones run, and the best settings so far.

    Raises:
        UserError: there is no sweep in the folder, or behind the URI.
    """
    folder = read_folder(place)
    if not (folder / SWEEP).is_file():
        if is_running(folder):
            console.print(f"a sweep in {place} reads its images and plans its trials", markup=False)
            return
        raise UserError(
            f"no sweep in {place}: give the folder of one, as `kdfm sweep --status runs/sweep-...`"
        )
    saved = json.loads((folder / SWEEP).read_text())
    sweep = saved["sweep"]
    fields = saved.get("fields") or list(sweep["space"])  # folders of before cases have none
    running = is_running(folder)
    rows = _rows(folder)
    live = _read_now(folder) if running else {}
    counts: dict[str, int] = {}
    for row in rows:
        status = row["status"]
        if status == "running" and not running:
            status = "waiting"
        elif status == "waiting" and row["trial_id"] in live.get("jobs", {}):
            status = "running"
        counts[status] = counts.get(status, 0) + 1
    shown = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    state = "runs now" if running else "is not running"
    if is_uri(place):
        state = "as it was copied there last"
    console.print(
        f"sweep {sweep['name']} in {place} {state}: {shown or 'no trial yet'}",
        soft_wrap=True,
        markup=False,
    )
    if live:
        console.print(f"now: {live['phase']}", markup=False)
        for line in describe_now(live["jobs"]):
            console.print(f"  {line}", markup=False)
    unfinished = any(status in counts for status in ("waiting", "failed"))
    if not running and unfinished and not is_uri(place):
        console.print("the command that started it goes on with what is missing")
    _print_settings(folder, fields, console, "best settings so far")


def print_end(result: SweepResult, fields: list[str], console: Console) -> None:
    """What a sweep has found, at its end."""
    counts: dict[str, int] = {}
    for row in result.rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    console.print(f"\ntrials: {', '.join(f'{n} {status}' for status, n in counts.items())}")
    for line in describe(result.savings):
        console.print(line, soft_wrap=True, markup=False)
    _print_settings(result.path, fields, console, "best settings")
    console.print(f"page: {result.place}/{PAGE}", soft_wrap=True, markup=False)


def _rows(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    table = folder / "trials.parquet"
    if not table.is_file():
        return []
    rows: list[dict[str, Any]] = pq.read_table(table).to_pylist()
    # The table is written now and then, the lines of the trials at once.
    latest: dict[str, str] = {}
    if (folder / TRIALS).is_file():
        for text in (folder / TRIALS).read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # being written
                continue
            known = {"start": "running", "end": line.get("status", "")}
            latest[line["trial"]] = known.get(line["event"]) or latest.get(line["trial"], "running")
    return [row | {"status": latest.get(row["trial_id"], row["status"])} for row in rows]


def _read_now(folder: Path) -> dict[str, Any]:
    try:
        now: dict[str, Any] = json.loads((folder / NOW).read_text())
    except (OSError, ValueError):
        return {}
    return now if time.time() - now["time"] < 60 else {}


def _print_settings(folder: Path, fields: list[str], console: Console, title: str) -> None:
    import pyarrow.csv as csv

    path = folder / "settings.csv"
    if not path.is_file():
        return
    known = ("val_accuracy_mean", "test_accuracy_mean")
    rows = csv.read_csv(path).to_pylist()
    rows = [row for row in rows if any(row.get(name) is not None for name in known)]
    if not rows:
        return
    table = Table(title=f"{title}, finished on all seeds", title_justify="left")
    for name in (*fields, "validation", "test"):
        table.add_column(name, justify="right" if name in ("validation", "test") else "left")
    for row in rows[:SHOWN]:
        cells = [short(row[name]) for name in fields]
        for name in ("val_accuracy", "test_accuracy"):
            sd = row.get(f"{name}_sd")
            spread = "" if sd is None else f" ± {100 * sd:.2f}"
            cells.append(percent(row[f"{name}_mean"]) + spread)
        table.add_row(*cells)
    console.print(table)
