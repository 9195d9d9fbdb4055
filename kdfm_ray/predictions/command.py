"""Predict the images that a person names, and leave tables."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from kdfm_ray.config import ScaleConfig
from kdfm_ray.data.inputs import find_images
from kdfm_ray.jobs.finished import Calibration, FinishedRun, calibrate
from kdfm_ray.jobs.predict import Predicted, predict_images
from kdfm_ray.jobs.session import open_session
from kdfm_ray.predictions.review import Pool
from kdfm_ray.predictions.table import SCHEMA, check_out, make_rows, plain, writing
from kdfm_ray.types import Emit, UserError

FEW = 1_000  # images for which Ray's start would take longer than they do
MOST_NAMED = 10  # files that cannot be read, in messages
SKIPPED = pa.schema([("path", pa.string()), ("reason", pa.string())])
REVIEW = pa.schema([*SCHEMA, ("cluster", pa.int64())])


@dataclass(frozen=True)
class Predictions:
    """What became of some images.

    Attributes:
        rows: one dict an image, sorted by path (see ``predictions.table``); empty where they went
            to a file.
        count: images with a label.
        skipped: path and reason of those that cannot be read.
        review: rows of the images worth labeling next, least certain first; ``cluster`` beside.
        labels: class -> number of images, the most frequent first.
        confidence: mean confidence.
        calibration: the temperature that was used.
        out: the file; ``None`` without one.
        seconds: that it took.
    """

    count: int
    skipped: list[tuple[str, str]]
    labels: dict[str, int]
    confidence: float
    calibration: Calibration
    out: str | None
    seconds: float
    rows: list[dict[str, Any]] = field(repr=False)
    review: list[dict[str, Any]] = field(repr=False)


def predict_run(
    run: FinishedRun,
    images: str | Path | Sequence[str | Path],
    out: str | None,
    emit: Emit,
    *,
    review: int = 0,
    workers: int | None = None,
    use_gpu: Literal["auto", "yes", "no"] = "auto",
    batch_size: int = 128,
    verbose: bool = False,
) -> Predictions:
    """Predict images with a run's network; see ``Run.predict``.

    Raises:
        UserError: no images, none that can be read, or an unknown ending of ``out``.
        RunFailed: a file cannot be written, or actors died again and again.
    """
    if out is not None:
        check_out(out)
    for name, value, least in (
        ("review", review, 0),
        ("workers", workers or 0, 0),
        ("batch-size", batch_size, 1),
    ):
        if value < least:
            raise UserError(f"--{name} {value}: give {least} or more")
    found = find_images(images)
    if workers is None:
        few = len(found) <= FEW and not os.environ.get("RAY_ADDRESS")
        workers = 0 if few else 1
    started = time.perf_counter()
    scale = ScaleConfig(num_workers=workers, use_gpu=use_gpu)
    with open_session(scale, emit, verbose=verbose) as session, contextlib.ExitStack() as files:
        writer = None if out is None else files.enter_context(writing(out))
        calibration = calibrate(session, run)
        collected = _Collected(run.classes, found.names, review)
        for part in predict_images(
            session,
            run,
            found,
            temperature=calibration.temperature,
            batch_size=batch_size,
            embeddings=review > 0,
            gpus_per_actor=run.gpus_per_actor(),
        ):
            table = collected.add(part)
            if writer is None:
                collected.rows += table.to_pylist()
            else:
                writer.write(table)
        collected.check()
        session.drain()
    chosen = collected.reviewed()
    if out is not None:
        _write_beside(out, "skipped", SKIPPED, collected.skipped_rows())
        if review:
            _write_beside(out, "review", REVIEW, chosen)
    return Predictions(
        count=collected.count,
        skipped=collected.skipped,
        labels=dict(collected.labels.most_common()),
        confidence=collected.confidence / collected.count,
        calibration=calibration,
        out=out,
        seconds=time.perf_counter() - started,
        rows=collected.rows,
        review=chosen,
    )


class _Collected:
    """What is kept of parts that pass by: sums, the unreadable, and candidates for review."""

    def __init__(self, classes: list[str], names: Sequence[str], review: int) -> None:
        self._classes, self._names = classes, names
        self._pool = Pool(review) if review else None
        self._candidates: dict[int, dict[str, Any]] = {}
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[tuple[str, str]] = []
        self.labels: Counter[str] = Counter()
        self.count, self.confidence = 0, 0.0

    def add(self, part: Predicted) -> pa.Table:
        """Count a part; its rows."""
        numbers = np.arange(part.start, part.start + len(part))
        read = np.array([reason is None for reason in part.reasons])
        for number, reason in enumerate(part.reasons, part.start):
            if reason is not None:
                self.skipped.append((plain(self._names[number]), reason))
        names = [self._names[number] for number in numbers[read]]
        table = make_rows(names, part.top[read], part.probs[read], self._classes)
        self.labels.update(table["label"].to_pylist())
        self.count += len(table)
        self.confidence += float(part.probs[read][:, 0].sum(dtype=np.float64))
        if self._pool is not None and len(table):
            assert part.embeddings is not None
            margin = table["margin"].to_numpy()
            self._pool.add(numbers[read], margin, part.embeddings[read])
            rows = zip(numbers[read].tolist(), table.to_pylist(), strict=True)
            self._candidates |= dict(rows)
            kept = set(self._pool.index.tolist())
            self._candidates = {n: row for n, row in self._candidates.items() if n in kept}
        return table

    def check(self) -> None:
        """Refuse to call it done where nothing was read."""
        if self.count == 0:
            raise UserError(
                f"none of {len(self.skipped):,} images can be read, and nothing was written: "
                f"{named(self.skipped)}"
            )

    def reviewed(self) -> list[dict[str, Any]]:
        """Rows of the images worth labeling next."""
        if self._pool is None:
            return []
        index, cluster = self._pool.choose()
        pairs = zip(index.tolist(), cluster.tolist(), strict=True)
        return [self._candidates[number] | {"cluster": group} for number, group in pairs]

    def skipped_rows(self) -> list[dict[str, Any]]:
        return [{"path": path, "reason": reason} for path, reason in self.skipped]


def beside(out: str, what: str) -> str:
    """The companion of a table: ``new.parquet`` has ``new.skipped.csv`` and ``new.review.csv``."""
    return f"{out[: len(out) - len(PurePosixPath(out).suffix)]}.{what}.csv"


def named(skipped: Sequence[tuple[str, str]]) -> str:
    """The first unreadable files, each with its reason."""
    lines = [f"{path} ({reason})" for path, reason in skipped[:MOST_NAMED]]
    more = len(skipped) - MOST_NAMED
    return "; ".join(lines) + (f"; and {more:,} more" if more > 0 else "")


def _write_beside(out: str, what: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> None:
    """Write a companion; without rows none is left, of an earlier time neither."""
    target = beside(out, what)
    if rows:
        with writing(target, schema) as writer:
            writer.write(pa.Table.from_pylist(rows, schema))
    elif "://" not in target:
        Path(target).expanduser().unlink(missing_ok=True)
