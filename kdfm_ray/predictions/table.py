"""The table of predictions: its columns, and writers that hold a part of it at a time.

path          as it was given
label         the likeliest class; null where the image cannot be read
confidence    its calibrated probability
label_2, confidence_2, label_3, confidence_3    the next ones, null where there are no more
margin        confidence - confidence_2
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from kdfm_ray.remote import open_files
from kdfm_ray.types import RunFailed, UserError

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.string()),
        ("confidence", pa.float32()),
        ("label_2", pa.string()),
        ("confidence_2", pa.float32()),
        ("label_3", pa.string()),
        ("confidence_3", pa.float32()),
        ("margin", pa.float32()),
    ]
)
DIGITS = 6  # of numbers in text


@runtime_checkable
class Writer(Protocol):
    """Takes parts of a table."""

    def write(self, table: pa.Table) -> None:
        """Append rows."""

    def close(self) -> None:
        """Finish the file."""


def make_rows(
    names: Sequence[str], top: np.ndarray, probs: np.ndarray, classes: Sequence[str]
) -> pa.Table:
    """Rows of images whose classes were found.

    Args:
        names: N paths.
        top: int64 ``[N, t]``, likeliest class first.
        probs: float32 ``[N, t]``.
        classes: K names.
    """
    called = np.array(list(classes), dtype=object)
    columns: dict[str, Any] = {"path": [plain(name) for name in names]}
    for rank in range(3):
        known = rank < top.shape[1]
        end = "" if rank == 0 else f"_{rank + 1}"
        columns[f"label{end}"] = called[top[:, rank]] if known else [None] * len(names)
        columns[f"confidence{end}"] = probs[:, rank] if known else [None] * len(names)
    second = probs[:, 1] if top.shape[1] > 1 else 0
    columns["margin"] = probs[:, 0] - second
    return pa.table(
        {field.name: pa.array(columns[field.name], field.type) for field in SCHEMA}, schema=SCHEMA
    )


def plain(name: str) -> str:
    r"""A file's name as text; bytes that are no UTF-8 become ``\udcXX``."""
    return name.encode("utf-8", "backslashreplace").decode()


def check_out(out: str) -> None:
    """Refuse a file name whose ending names no format.

    Raises:
        UserError: says which do.
    """
    if PurePosixPath(out).suffix.lower() not in WRITERS:
        raise UserError(f"--out {out}: its ending must be one of {', '.join(WRITERS)}")


@contextlib.contextmanager
def writing(out: str, schema: pa.Schema = SCHEMA) -> Iterator[Writer]:
    """Write the file (or URI) ``out``, which appears whole when the block ends well.

    Raises:
        RunFailed: it cannot be written.
    """
    with whole_file(out) as path:
        writer = WRITERS[PurePosixPath(out).suffix.lower()](path, schema)
        try:
            yield writer
        finally:
            writer.close()


@contextlib.contextmanager
def whole_file(out: str) -> Iterator[Path]:
    """A temporary file that becomes ``out`` (a path or a URI) when the block ends well.

    Raises:
        RunFailed: ``out`` cannot be written.
    """
    remote = "://" in out
    target = Path(out).expanduser()
    with _explained(out):
        if not remote:
            target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.", dir=None if remote else target.parent
        )
        os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with _explained(out):
            if remote:
                files, path = open_files(out)
                files.makedirs(path.rpartition("/")[0], exist_ok=True)
                files.put_file(name, path)
            else:
                temporary.chmod(0o666 & ~_umask())  # mkstemp's are for the owner alone
                temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _explained(out: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunFailed(f"{out} cannot be written: {reason}") from error


class _Parquet:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema)

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


class _Csv:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pyarrow.csv.CSVWriter(path, _text_schema(schema))

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(_rounded(table))

    def close(self) -> None:
        self._writer.close()


class _JsonLines:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, table: pa.Table) -> None:
        for row in _rounded(table).to_pylist():
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


WRITERS: dict[str, Any] = {".parquet": _Parquet, ".csv": _Csv, ".jsonl": _JsonLines}


def _text_schema(schema: pa.Schema) -> pa.Schema:
    """Numbers with two digits more: those of float32 would be written as its nearest neighbors."""
    return pa.schema(
        [
            (field.name, pa.float64() if pa.types.is_float32(field.type) else field.type)
            for field in schema
        ]
    )


def _rounded(table: pa.Table) -> pa.Table:
    schema = _text_schema(table.schema)
    columns = []
    for field, column in zip(schema, table.columns, strict=True):
        if pa.types.is_float64(field.type):
            values = column.to_numpy(zero_copy_only=False).astype(np.float64).round(DIGITS)
            columns.append(pa.array(values, from_pandas=True))  # NaN is null
        else:
            columns.append(column)
    return pa.table(columns, schema=schema)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
