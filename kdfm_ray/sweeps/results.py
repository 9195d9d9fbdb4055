"""Tables of a sweep: a row for each trial, and mean and spread of each setting over its seeds."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from kdfm_ray.sweeps.ledger import Record
from kdfm_ray.sweeps.space import Trial

FACTS = (
    "outer_val_accuracy",
    "outer_test_accuracy",
    "longer_val_accuracy",
    "longer_test_accuracy",
    "labeled_only_val_accuracy",
    "labeled_only_test_accuracy",
    "label_precision",
    "confident_size",
    "confident_precision",
    "trusted_size",
    "trusted_coverage",
    "trusted_precision",
    "cluster_agreement",
    "cluster_nmi",
    "cluster_fallback",
)
METHODS = {
    "labeled_only_test_accuracy": "labeled-only",
    "outer_test_accuracy": "FixMatch (outer)",
    "longer_test_accuracy": "FixMatch, updates of both",
    "test_accuracy": "KD-FixMatch (inner)",
}


@dataclass(frozen=True)
class Spread:
    """Mean and spread of a figure over seeds.

    Attributes:
        mean: of the seeds.
        sd: standard deviation (n - 1); ``None`` for one seed.
        half: half the width of the 95 % confidence interval of the mean (Student's t).
        count: seeds.
    """

    mean: float
    sd: float | None
    half: float | None
    count: int


@dataclass(frozen=True)
class Setting:
    """A setting and how its trials ended.

    Attributes:
        number: as in the table of trials.
        values: field -> value.
        statuses: of its trials, by seed.
        figures: name -> spread; empty unless all seeds are finished. ``gain`` is the test accuracy
            less that of FixMatch (the outer network), seed by seed, and ``behind`` the score of the
            best setting less this one's, seed by seed: seeds differ more than settings do.
        scores: seed -> what settings are ranked by.
    """

    number: int
    values: dict[str, Any]
    statuses: dict[int, str]
    figures: dict[str, Spread]
    scores: dict[int, float] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all seeds are finished; no others may be compared."""
        return bool(self.figures)


def trial_rows(trials: Sequence[Trial], records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """One row a trial; accuracies are fractions, ``seconds`` are of wall time.

    ``val_accuracy`` of a trial that is not finished is its last one; ``test_accuracy`` is of
    finished ones alone.
    """
    rows = []
    for trial in trials:
        record = records.get(trial.id, Record())
        row: dict[str, Any] = {
            "trial_id": trial.id,
            "status": record.status,
            "seed": trial.seed,
            "setting": trial.setting,
        }
        row |= {name: scalar(value) for name, value in trial.values.items()}
        row |= {
            "val_accuracy": record.val_accuracy,
            "test_accuracy": record.row.get("test_accuracy"),
            "step": max(record.curve, default=0),
            "steps": trial.config.steps_of("inner"),
            "seconds": round(record.seconds, 3),
            "outer_key": record.networks.get("outer"),
            "config_hash": trial.config.hash(),
        }
        row |= {name: record.row.get(name) for name in FACTS}
        rows.append(row | {"why": record.why or None})
    return rows


def write_tables(folder: Path, rows: Sequence[dict[str, Any]], settings: Sequence[Setting]) -> None:
    """``trials.parquet``, ``trials.csv`` and ``settings.csv``, each whole or not at all."""
    table = _table(rows)
    _write(folder / "trials.parquet", lambda path: pa.parquet.write_table(table, path))
    _write(folder / "trials.csv", lambda path: pa.csv.write_csv(table, path))
    summary = _table([_summary(setting) for setting in settings])
    _write(folder / "settings.csv", lambda path: pa.csv.write_csv(summary, path))


def summarize(rows: Sequence[dict[str, Any]], fields: Sequence[str]) -> list[Setting]:
    """Settings by mean validation accuracy, best first; those not finished on all seeds last."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["setting"], []).append(row)
    found = []
    for number, group in groups.items():
        figures: dict[str, Spread] = {}
        if all(row["status"] == "finished" for row in group):
            names = ("val_accuracy", "test_accuracy", *FACTS)
            for name in names:
                values = [row[name] for row in group]
                if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
                    figures[name] = spread(values)
            if {"test_accuracy", "outer_test_accuracy"} <= set(figures):
                gains = [row["test_accuracy"] - row["outer_test_accuracy"] for row in group]
                figures["gain"] = spread(gains)
        score = "val_accuracy" if "val_accuracy" in figures else "test_accuracy"
        found.append(
            Setting(
                number,
                {name: group[0][name] for name in fields},
                {row["seed"]: row["status"] for row in group},
                figures,
                {row["seed"]: row[score] for row in group} if score in figures else {},
            )
        )
    found.sort(key=_rank)
    best = found[0].scores if found else {}
    for setting in found:
        if setting.scores:
            setting.figures["behind"] = spread([best[s] - setting.scores[s] for s in best])
    return found


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and confidence interval of a few values."""
    from scipy.stats import t

    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Spread(mean, None, None, count)
    sd = float(np.std(values, ddof=1))
    return Spread(mean, sd, float(t.ppf(0.975, count - 1)) * sd / math.sqrt(count), count)


def scalar(value: Any) -> Any:
    """A value of a table's cell."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, default=str)


def _rank(setting: Setting) -> tuple[bool, float, int]:
    val = setting.figures.get("val_accuracy") or setting.figures.get("test_accuracy")
    return val is None, -(val.mean if val else 0.0), setting.number


def _summary(setting: Setting) -> dict[str, Any]:
    row: dict[str, Any] = {"setting": setting.number} | setting.values
    row["seeds"] = len(setting.statuses)
    row["finished"] = sum(status == "finished" for status in setting.statuses.values())
    for name in ("val_accuracy", "test_accuracy", "gain", "behind", *FACTS):
        figure = setting.figures.get(name)
        row[f"{name}_mean"] = figure.mean if figure else None
        row[f"{name}_sd"] = figure.sd if figure else None
    for name in ("val_accuracy", "gain", "behind"):
        figure = setting.figures.get(name)
        row[f"{name}_ci95"] = figure.half if figure else None
    return row


def _table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    names = list(rows[0]) if rows else []
    columns = {}
    for name in names:
        values = [row[name] for row in rows]
        kinds = {type(value) for value in values if value is not None}
        numeric = all(issubclass(kind, int | float) for kind in kinds)
        if len(kinds) > 1 and not numeric:  # auto beside 10: a column has one type
            values = [None if value is None else str(value) for value in values]
        columns[name] = pa.array(values)
    return pa.table(columns)


def _write(path: Path, write: Callable[[str], None]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(str(temporary))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
