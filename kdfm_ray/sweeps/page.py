"""The page of a sweep: one HTML file with its pictures in it, readable while the sweep runs."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdfm_ray.config import is_open
from kdfm_ray.report.html import page, table, text
from kdfm_ray.report.run_folder import write_whole
from kdfm_ray.sweeps.results import METHODS, Setting, Spread
from kdfm_ray.sweeps.space import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE = "index.html"
SHOWN_SETTINGS = 30  # rows of the table of settings
SHOWN_CURVES = 60
MAP_VALUES = 12  # of a field in a heat map, at most
# Figures scroll by themselves where the window is narrow, and stay readable.
STYLE = (
    "figure { margin: 0; overflow-x: auto; } figure svg { min-width: 34em; } "
    "p, li, h1, h2 { overflow-wrap: anywhere; }"
)
COLORS = {"finished": "#1f6f8b", "stopped": "#c98a2b", "failed": "#b23a48", "running": "#8a8a8a"}


def write_page(
    folder: Path,
    sweep: Sweep,
    rows: Sequence[dict[str, Any]],
    settings: Sequence[Setting],
    curves: Mapping[str, Mapping[int, float]],
    saved: Sequence[str],
    *,
    over: bool,
) -> None:
    """Write ``index.html`` whole.

    Args:
        folder: of the sweep.
        sweep: what was asked.
        rows: the table of trials.
        settings: best first.
        curves: trial id -> update -> validation accuracy.
        saved: sentences on what was saved.
        over: whether the sweep has ended; else the page reloads itself.
    """
    counts = {
        status: sum(row["status"] == status for row in rows)
        for status in ("finished", "stopped", "failed", "running", "waiting")
    }
    count = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    parts = [
        f"<h1>Sweep {text(sweep.name)}</h1>",
        f"<p>{len(rows)} trials: {count}. Seeds {text(', '.join(map(str, sweep.seeds)))}. "
        f"Base: {text(_base(sweep))}.</p>",
        *(f"<p class=dim>{text(line)}.</p>" for line in saved),
        "<h2>Settings, best first</h2>",
        "<p class=dim>By mean validation accuracy of the inner network; only settings whose trials "
        "are all finished are ranked. &plusmn; is the standard deviation over seeds, intervals "
        "hold the mean with 95 % (Student's t). <i>Behind the best</i> and <i>gain</i> (test "
        "accuracy over that of FixMatch, the outer network) are differences seed by seed, in "
        "points: a setting whose interval holds 0 is not told from the best by these seeds. "
        "Test accuracy chose nothing here.</p>",
        _settings_table(settings, sweep.fields),
    ]
    complete = [setting for setting in settings if setting.complete]
    if complete:
        parts += ["<h2>Best settings</h2>", _svg(_best(complete, sweep.fields))]
    if methods := _methods(complete, sweep.fields):
        parts += ["<h2>Methods</h2>", methods]
    for first, second in _pairs(complete, sweep.fields):
        title = f"{first} and {second}"
        parts += [f"<h2>{text(title)}</h2>", _svg(_heat_map(complete, first, second))]
    ended = [row for row in rows if row["val_accuracy"] is not None]
    if len(ended) > 1:
        parts += [
            "<h2>All trials</h2>",
            "<p class=dim>One line a trial, from its values to its validation accuracy; "
            "stopped ones at the accuracy they were stopped with.</p>",
            _svg(_parallel(ended, sweep.fields)),
        ]
    if any(curves.get(row["trial_id"]) for row in rows):
        parts += ["<h2>Learning curves</h2>", _svg(_curves(rows, curves))]
    parts.append(_failures(rows))
    parts.append("<p class=dim>Tables: trials.parquet, trials.csv, settings.csv.</p>")
    reload = "" if over else '<meta http-equiv="refresh" content="30">'
    write_whole(folder / PAGE, page(f"Sweep {sweep.name}", parts, head=reload, style=STYLE))


def _base(sweep: Sweep) -> str:
    base = sweep.base
    data = base.data.name or "folders"
    labels = f", {base.data.num_labels:,} labels" if base.data.num_labels else ""
    steps = "" if is_open(base.train, "steps") else f", {base.train.steps:,} updates a network"
    return f"{data}{labels}, {base.model.name}{steps}"


def _settings_table(settings: Sequence[Setting], fields: Sequence[str]) -> str:
    figures_head = ("validation", "behind the best, 95 %", "test", "gain, 95 %")
    head = [*_heads(fields), *figures_head, "trusted", "their precision", "seeds"]
    rows = []
    for number, setting in enumerate(settings[:SHOWN_SETTINGS]):
        figures = setting.figures
        val = figures.get("val_accuracy")
        size = figures.get("trusted_size")
        rows.append(
            [
                *(text(short(value)) for value in setting.values.values()),
                _spread(val),
                "best" if number == 0 and val else _interval(figures.get("behind")),
                _spread(figures.get("test_accuracy")),
                _interval(figures.get("gain")),
                f"{size.mean:,.0f}" if size else "-",
                _spread(figures.get("trusted_precision")),
                text(_seeds(setting)),
            ]
        )
    more = len(settings) - SHOWN_SETTINGS
    note = f"<p class=dim>{more} more in settings.csv.</p>" if more > 0 else ""
    numbers = range(len(fields), len(head) - 1)
    return table(head, rows, numbers=numbers) + note


def _heads(fields: Sequence[str]) -> list[str]:
    """Fields as titles of columns: without their section, where that is clear."""
    last = [name.rpartition(".")[2] for name in fields]
    return [
        f'<span title="{text(name)}">{text(short if last.count(short) == 1 else name)}</span>'
        for name, short in zip(fields, last, strict=True)
    ]


def _seeds(setting: Setting) -> str:
    kinds = sorted(set(setting.statuses.values()))
    if kinds == ["finished"]:
        return f"all {len(setting.statuses)}"
    found = list(setting.statuses.values())
    others = ", ".join(f"{found.count(kind)} {kind}" for kind in kinds if kind != "finished")
    return f"{found.count('finished')} of {len(found)}; {others}"


def _methods(settings: Sequence[Setting], fields: Sequence[str]) -> str:
    """Test accuracy of the networks of each setting beside each other."""
    if not any(setting.figures.get("test_accuracy") for setting in settings):
        return ""
    shown = {
        name: title
        for name, title in METHODS.items()
        if any(name in setting.figures for setting in settings)
    }
    head = [*_heads(fields), *map(text, shown.values())]
    rows = [
        [
            *(text(short(value)) for value in setting.values.values()),
            *(_spread(setting.figures.get(name)) for name in shown),
        ]
        for setting in sorted(settings, key=lambda each: each.number)[:SHOWN_SETTINGS]
    ]
    return "<p class=dim>Test accuracy, mean &plusmn; standard deviation over seeds.</p>" + table(
        head, rows, numbers=range(len(fields), len(head))
    )


def _failures(rows: Sequence[dict[str, Any]]) -> str:
    failed = [row for row in rows if row["status"] == "failed"]
    if not failed:
        return ""
    items = "".join(
        f"<li>{text(row['trial_id'])}: {text(str(row['why']).splitlines()[0])}</li>"
        for row in failed
    )
    return f"<h2>Failed trials</h2><ul>{items}</ul>"


def _best(settings: Sequence[Setting], fields: Sequence[str]) -> Figure:
    """Means with their intervals, a row a setting."""
    shown = list(settings[:12])[::-1]
    figure, axes = _figure(height=1.2 + 0.36 * len(shown))
    for row, setting in enumerate(shown):
        for name, color, shift in (
            ("val_accuracy", "#1f6f8b", 0.1),
            ("test_accuracy", "#8a8a8a", -0.1),
        ):
            found = setting.figures.get(name)
            if found is not None:
                axes.errorbar(
                    100 * found.mean,
                    row + shift,
                    xerr=None if found.half is None else 100 * found.half,
                    fmt="o",
                    color=color,
                    capsize=3,
                    label=name.replace("_", " ") if row == 0 else None,
                )
    axes.set_yticks(range(len(shown)), [_label(setting, fields) for setting in shown])
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_xlabel("accuracy, % (mean and 95 % interval over seeds)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="best", fontsize=8)
    return figure


def _pairs(settings: Sequence[Setting], fields: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of numeric fields with a few values each, at most three pairs."""
    numeric = []
    for name in fields:
        values = {setting.values[name] for setting in settings}
        if 1 < len(values) <= MAP_VALUES and all(_is_number(value) for value in values):
            numeric.append(name)
    return list(itertools.combinations(numeric, 2))[:3]


def _heat_map(settings: Sequence[Setting], first: str, second: str) -> Figure:
    """Mean validation accuracy over all settings with the same two values."""
    xs = sorted({setting.values[first] for setting in settings})
    ys = sorted({setting.values[second] for setting in settings})
    cells: dict[tuple[Any, Any], list[float]] = {}
    for setting in settings:
        found = setting.figures.get("val_accuracy") or setting.figures.get("test_accuracy")
        if found is not None:
            cell = setting.values[first], setting.values[second]
            cells.setdefault(cell, []).append(100 * found.mean)
    grid = np.full((len(ys), len(xs)), np.nan)
    for (x, y), values in cells.items():
        grid[ys.index(y), xs.index(x)] = np.mean(values)
    figure, axes = _figure(height=1.4 + 0.45 * len(ys), width=2.5 + 0.9 * len(xs))
    image = axes.imshow(grid, cmap="viridis", aspect="auto", origin="lower")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for row, column in np.ndindex(grid.shape):
        if not np.isnan(grid[row, column]):
            color = "black" if grid[row, column] > middle else "white"
            shown = f"{grid[row, column]:.2f}"
            axes.text(column, row, shown, ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(xs)), [short(x) for x in xs])
    axes.set_yticks(range(len(ys)), [short(y) for y in ys])
    axes.set_xlabel(first)
    axes.set_ylabel(second)
    figure.colorbar(image, label="validation accuracy, %")
    return figure


def _parallel(rows: Sequence[dict[str, Any]], fields: Sequence[str]) -> Figure:
    """Parallel coordinates: an axis a field, and validation accuracy at the right."""
    names = [*fields, "seed", "val_accuracy"]
    figure, axes = _figure(height=4.2)
    columns = {name: _positions([row[name] for row in rows]) for name in names}
    scores = columns["val_accuracy"][0]
    order = np.argsort(scores)
    colors = _colormap()
    for number in order:
        row = rows[number]
        heights = [columns[name][0][number] for name in names]
        style = "--" if row["status"] == "stopped" else "-"
        axes.plot(
            range(len(names)), heights, style, color=colors(scores[number]), alpha=0.7, lw=1.3
        )
    for place, name in enumerate(names):
        axes.axvline(place, color="#999", lw=0.8)
        marks = columns[name][1]
        if name == "val_accuracy":
            marks = [(height, f"{100 * float(label):.1f} %") for height, label in marks]
        for height, label in marks:
            box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
            axes.text(place + 0.02, height, label, fontsize=7.5, va="center", bbox=box)
    axes.set_xticks(range(len(names)), [name.rpartition(".")[2] for name in names])
    axes.set_xlim(-0.1, len(names) - 0.6)
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _curves(rows: Sequence[dict[str, Any]], curves: Mapping[str, Mapping[int, float]]) -> Figure:
    figure, axes = _figure(height=4)
    labeled = set()
    known = [row for row in rows if curves.get(row["trial_id"])]
    shown = known[:: -(-len(known) // SHOWN_CURVES)]  # of many, evenly: finished and stopped
    for row in sorted(shown, key=lambda row: row["status"] != "finished"):
        points = sorted(curves[row["trial_id"]].items())
        status = row["status"] if row["status"] in COLORS else "running"
        steps, accuracy = zip(*points, strict=True)
        axes.plot(
            steps,
            [100 * value for value in accuracy],
            color=COLORS[status],
            alpha=0.6,
            lw=1.2,
            marker="." if status != "finished" or len(points) == 1 else None,
            label=None if status in labeled else status,
        )
        labeled.add(status)
    axes.set_xlabel("update of the inner network")
    axes.set_ylabel("validation accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _positions(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights in [0, 1] of values on an axis, and its labels."""
    if all(_is_number(value) for value in values):
        low, high = min(values), max(values)
        width = (high - low) or 1
        heights = [(value - low) / width if high > low else 0.5 for value in values]
        marks = sorted(set(values))
        if len(marks) > 6:
            marks = [low, (low + high) / 2, high]
        return heights, [((m - low) / width if high > low else 0.5, short(m)) for m in marks]
    kinds = sorted({str(value) for value in values})
    place = {kind: (i + 0.5) / len(kinds) for i, kind in enumerate(kinds)}
    return [place[str(value)] for value in values], [(h, kind) for kind, h in place.items()]


def _figure(*, height: float, width: float = 8.5) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _colormap() -> Any:
    import matplotlib

    return matplotlib.colormaps["viridis"]


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return f"<figure>{file.getvalue()[file.getvalue().index('<svg') :]}</figure>"


def _label(setting: Setting, fields: Sequence[str]) -> str:
    parts = (f"{name.rpartition('.')[2]} {short(setting.values[name])}" for name in fields)
    return ", ".join(parts)


def _spread(found: Spread | None) -> str:
    if found is None:
        return "-"
    sd = "" if found.sd is None else f" &plusmn; {100 * found.sd:.2f}"
    return f"{100 * found.mean:.2f}{sd}"


def _interval(found: Spread | None) -> str:
    if found is None or found.half is None:
        return "-"
    low, high = found.mean - found.half, found.mean + found.half
    return f"{100 * low:+.2f} to {100 * high:+.2f}"


def short(value: Any) -> str:
    """A setting's value as people read it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
