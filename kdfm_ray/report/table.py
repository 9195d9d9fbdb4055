"""The end of a run, as a few lines that a person reads."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdfm_ray.report.live import TITLES
from kdfm_ray.report.verdict import updates

ROWS = {
    "labeled_only": "labeled-only",
    "outer": "FixMatch (outer)",
    "fixmatch_longer": "FixMatch, updates of both",
    "inner": "KD-FixMatch (inner)",
}


def print_report(report: dict[str, Any], console: Console, folder: str) -> None:
    """Accuracies, the trusted subset, seconds of each stage, warnings, and the run folder."""
    data = report["data"]
    console.print()
    table = Table(title=f"{data['name']}, {data['labeled']:,} labels", title_justify="left")
    table.add_column("network")
    table.add_column("updates", justify="right")
    table.add_column("test accuracy", justify="right")
    table.add_column(f"validation ({data['val']:,} images)", justify="right")
    for role, title in ROWS.items():
        if role in report["test_accuracy"]:
            test, val = report["test_accuracy"][role], report["val_accuracy"][role]
            done = updates(report, role)
            count = "-" if done is None else f"{done:,}"
            table.add_row(title, count, percent(test), percent(val))
    console.print(table)
    console.print(trusted_line(report))
    console.print(time_line(report), soft_wrap=True)
    for warning in report["warnings"]:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", soft_wrap=True)
    console.print(f"run folder: {folder}", soft_wrap=True, markup=False)


def trusted_line(report: dict[str, Any]) -> str:
    """Size and precision of the trusted subset, beside the precision of all pseudo labels."""
    trusted = report["trusted"]
    coverage = percent(trusted["coverage"])
    line = f"trusted subset: {trusted['size']:,} images, {coverage} of those without a label"
    if trusted["precision"] is None:
        return f"{line}; precision unknown (no true labels to compare with)"
    return (
        f"{line}; precision {percent(trusted['precision'])} "
        f"(of all pseudo labels: {percent(trusted['precision_all'])})"
    )


def time_line(report: dict[str, Any]) -> str:
    """Seconds of each stage; reused ones took them in an earlier run."""
    parts, rest = [], report["total_seconds"]
    for stage, seconds in report["stages"].items():
        reused = stage in report["reused"]
        rest -= 0 if reused else seconds
        parts.append(f"{TITLES[stage]} {seconds:.1f} s{' (reused)' if reused else ''}")
    parts.append(f"starting processes and the rest {max(0.0, rest):.1f} s")
    return f"time: {', '.join(parts)}; in all {report['total_seconds']:.1f} s"


def percent(value: float | None) -> str:
    """A fraction as a percentage, or a dash."""
    return "-" if value is None else f"{100 * value:.2f} %"
