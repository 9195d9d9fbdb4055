"""The user's own images, decoded once into arrays that every worker maps.

Tasks decode shards of files side by side; each shard becomes a file in a folder of its own beside
the states of trainings, so that an interrupted pass goes on with the shards that are missing. One
more task puts them into the artifact, shard by shard. Nobody holds more than one shard of pixels,
and no pixel passes through Ray.

The artifact holds ``train_images.npy``, ``test_images.npy`` (uint8 ``[N, S, S, 3]``), their labels,
and ``files.parquet``, whose rows say where each image came from:

    part   string   train or test
    index  int64    position in that part's arrays
    path   string   as listed; bytes that are no text are escaped
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import time
import uuid
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from kdfm_ray import keys
from kdfm_ray.config import Config
from kdfm_ray.data import duplicates, folder, sources
from kdfm_ray.data.images import Unreadable, decode, for_each, quiet_pillow, shorter_side
from kdfm_ray.jobs.session import Session
from kdfm_ray.leases import lease
from kdfm_ray.remote import StoreError, open_files
from kdfm_ray.store import Draft, Store
from kdfm_ray.types import UNKNOWN, Emit, RunFailed, UserError

if TYPE_CHECKING:  # the driver of a cluster computes nothing: it needs no torch
    from kdfm_ray.models.pretrained import SizeLimits

SHARD_BYTES = 32 * 2**20  # of pixels
SHARD_FILES = 2048  # at most
SHARDS = 16  # at least, where there are files enough
FEWEST_FILES = 64  # in a shard
SAMPLE = 64  # files whose size in pixels is looked at
REMOTE_THREADS = 16  # that read from an object store, in one task
MOST_EXAMPLES = 5  # files that an error names
MOST_OTHERS = 1000  # files passed over for their name that a record lists
LISTING = "listing.parquet"
FILES = pa.schema([("part", pa.string()), ("index", pa.int64()), ("path", pa.string())])


@dataclass(frozen=True)
class DecodeTask:
    """What a task needs to find its files.

    Attributes:
        store: root of the store.
        key: of the artifact.
        count: files in all.
        shard: files in each shard but the last.
        size: S, pixels a side.
        max_pixels: of an image; see ``data.images.decode``.
        threads: that decode in one task.
        facts: of the listing, which go into the record.
    """

    store: str
    key: str
    count: int
    shard: int
    size: int
    max_pixels: int
    threads: int
    facts: dict[str, Any]

    @property
    def folder(self) -> str:
        """Of the listing and finished shards."""
        return f"{self.store}/states/dataset/{self.key}"

    @property
    def shards(self) -> range:
        """Numbers of all shards."""
        return range(-(-self.count // self.shard))


@dataclass(frozen=True)
class Decoded:
    """The user's images in the store.

    Attributes:
        key: of the artifact.
        reused: they had been decoded before.
        size: pixels a side.
        why: that size, where the config leaves it open.
    """

    key: str
    reused: bool
    size: int
    why: str


def decode_own(
    session: Session, store: Store, config: Config, size: tuple[int, str] | None = None
) -> Decoded:
    """Have the user's images decoded, unless they were.

    Args:
        session: what to decode on.
        store: where they go.
        config: the run's, with ``model.pretrained`` as resolved.
        size: pixels a side and the reason, of an earlier try that the config leaves it open to.

    Raises:
        UserError: anything about the files that the user can mend.
        RunFailed: a file system did not answer.
    """
    started = time.perf_counter()
    task, why = session.call(_list, store.root, config, size, session.in_process, session.use_gpu)
    done = store.find("dataset", task.key)
    if done is not None:
        record = done.record()
        check_skipped(record["skipped"], record["num_files"], config.data.max_skipped, record)
        return Decoded(task.key, True, task.size, why)

    def waiting(holder: str) -> None:
        text = f"another run ({holder}) reads these images now: waiting for them"
        session.emit({"stage": "data", "waiting": text})

    def is_done() -> bool:
        return store.find("dataset", task.key) is not None

    with lease(store, "dataset", task.key, done=is_done, waiting=waiting) as held:
        if held:
            shards = [(task, number, session.emit) for number in task.shards]
            for _ in session.each(decode_shard, shards):
                pass
            session.call(_assemble, task, config.data.max_skipped, started)
    return Decoded(task.key, not held, task.size, why)


def shard_size(count: int, size: int) -> int:
    """Files in a shard: by their pixels, not by the number of tasks, so that any number goes on."""
    by_pixels = max(1, SHARD_BYTES // (3 * size**2))
    return min(SHARD_FILES, by_pixels, max(FEWEST_FILES, -(-count // SHARDS)))


def choose_size(sides: Sequence[int], limits: SizeLimits) -> tuple[int, str]:
    """Pixels a side for images with these shorter sides, and why: their median, within limits.

    Larger sizes cost more than most would expect, so they have to be asked for.
    """
    bounds = f"{limits.least} to {limits.most} ({limits.why})"
    if limits.least == limits.most:
        return limits.most, limits.why
    if not sides:
        return limits.most, f"the largest of {bounds}"
    median, unit = float(np.median(sides)), limits.multiple
    size = min(limits.most, max(limits.least, unit * round(median / unit)))
    return size, f"the median shorter side is {median:g}; multiples of {unit} from {bounds}"


def check_skipped(
    skipped: Sequence[dict[str, str]], total: int, limit: float, facts: dict[str, Any]
) -> None:
    """Refuse data of which more than the share ``limit`` could not be read.

    Raises:
        UserError: says how many, why, and names some; all of them are in its ``facts``.
    """
    if len(skipped) <= limit * total:
        return
    reasons = Counter(item["reason"] for item in skipped)
    why = "; ".join(f"{number} x {reason}" for reason, number in reasons.most_common(MOST_EXAMPLES))
    examples = "".join(f"\n  {item['path']}: {item['reason']}" for item in _varied(skipped))
    refused = UserError(
        f"{len(skipped):,} of {total:,} images ({len(skipped) / total:.1%}) cannot be used, more "
        f"than data.max_skipped = {limit:g} allows ({why}), such as{examples}\nMend them or take "
        "them away, or raise data.max_skipped, then run again."
    )
    refused.facts = facts | {"skipped": list(skipped), "num_files": total}
    raise refused


def _varied(skipped: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Some of them, of different reasons first."""
    firsts = list({item["reason"]: item for item in reversed(skipped)}.values())[::-1]
    rest = [item for item in skipped if item not in firsts] if len(skipped) < 1000 else []
    return [*firsts, *rest][:MOST_EXAMPLES]


def _list(
    store_root: str, config: Config, known: tuple[int, str] | None, in_process: bool, gpu: bool
) -> tuple[DecodeTask, str]:
    """Find the files, and leave their list for the other tasks where there is work to do.

    Returns:
        What those need, and why the images get that size.
    """
    data = config.data
    assert data.labeled is not None
    try:
        listing = folder.list_folders(data.labeled, data.unlabeled, data.test)
        files = listing.train + listing.test
        size, why = known or _choose_size(config, files, gpu)
    except StoreError as error:
        raise RunFailed(f"the images cannot be read now: {error}") from error
    key = keys.dataset_key(config, listing.fingerprint(), image_size=size)
    others = [sources.shown(place) for place in listing.others[:MOST_OTHERS]]
    threads = (os.cpu_count() or 1) if in_process else 1
    if any(sources.is_uri(file.place) for file in files):
        threads = max(threads, REMOTE_THREADS)
    task = DecodeTask(
        store=store_root,
        key=key,
        count=len(files),
        shard=shard_size(len(files), size),
        size=size,
        max_pixels=data.max_pixels,
        threads=threads,
        facts={
            "classes": list(listing.classes),
            "warnings": list(listing.warnings),
            "num_train": len(listing.train),
            "roots": list(listing.roots),
            "others": [{"path": place, "reason": _by_name(place)} for place in others],
            "non_images": listing.non_images(),
        },
    )
    if Store(store_root).find("dataset", key) is None:
        table = pa.table(
            {
                "place": pa.array([os.fsencode(file.place) for file in files], pa.binary()),
                "label": pa.array(np.append(listing.train_labels, listing.test_labels)),
            }
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=task.shard)
        _write_whole(f"{task.folder}/{LISTING}", buffer.getvalue())
    return task, why


def _choose_size(config: Config, files: Sequence[sources.ImageFile], gpu: bool) -> tuple[int, str]:
    if config.data.image_size is not None:
        return config.data.image_size, ""
    from kdfm_ray.models.pretrained import size_limits

    name, pretrained = config.model.name, config.model.pretrained != "no"
    return choose_size(_sample_sides(files), size_limits(name, pretrained=pretrained, gpu=gpu))


def _by_name(place: str) -> str:
    return f"not an image by its name ({sources.ending(place) or 'no ending'})"


def _sample_sides(files: Sequence[sources.ImageFile]) -> list[int]:
    """Shorter sides of some files, spread over all."""
    step = max(1, len(files) // SAMPLE)
    sides = []
    for file in files[::step][:SAMPLE]:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            sides.append(shorter_side(sources.content(file.place)))
    return [side for side in sides if side is not None]


def decode_shard(task: DecodeTask, number: int, emit: Emit) -> None:
    """Decode one shard of files into its file, unless an earlier try has.

    Raises:
        UserError: the files do not lie where this task runs.
        RunFailed: a file system did not answer.
    """
    part = f"{task.folder}/{_part(number)}"
    start = number * task.shard
    count = min(task.shard, task.count - start)
    if _is_done(part):
        emit({"stage": "data", "phase": "decode", "advance": count, "total": task.count})
        return
    _check_roots(task.facts["roots"])
    places = [os.fsdecode(place) for place in _listed(task, number)["place"].to_pylist()]
    images = np.zeros((count, task.size, task.size, 3), np.uint8)
    digests = np.zeros((count, duplicates.DIGEST), np.uint8)
    reasons: dict[int, str] = {}

    def work(i: int) -> None:
        try:
            images[i] = decode(sources.content(places[i]), task.size, task.max_pixels)
            digests[i] = duplicates.digest(images[i])
        except Unreadable as error:
            reasons[i] = str(error)
        except FileNotFoundError:
            reasons[i] = "no such file"
        except PermissionError:
            reasons[i] = "it may not be read (permission denied)"

    def tell(advance: int) -> None:
        emit({"stage": "data", "phase": "decode", "advance": advance, "total": task.count})

    try:
        with quiet_pillow():
            for_each(count, work, tell, threads=task.threads)
    except StoreError as error:
        raise RunFailed(
            f"the images cannot be read now: {error}. What is decoded is kept, and the same "
            "command goes on"
        ) from error
    buffer = io.BytesIO()
    text = json.dumps({str(i): reason for i, reason in sorted(reasons.items())}).encode()
    np.savez(buffer, images=images, digests=digests, reasons=np.frombuffer(text, np.uint8))
    _write_whole(part, buffer.getbuffer())


def _check_roots(roots: Sequence[str]) -> None:
    if missing := [root for root in roots if not os.path.exists(root)]:
        raise UserError(
            f"{missing[0]} is not there on the node {socket.gethostname()}: images have to lie in "
            "a folder that all nodes share, or behind a URI such as s3://bucket/prefix"
        )


def _assemble(task: DecodeTask, max_skipped: float, started: float) -> None:
    """Put the shards into the artifact, without what could not be read and without copies."""
    store = Store(task.store)
    listed = _listed(task)
    labels = listed["label"].to_numpy().astype(np.int64)
    raw = listed["place"]
    test = np.arange(task.count) >= task.facts["num_train"]

    def path(i: int) -> str:
        return sources.shown(os.fsdecode(raw[i].as_py()))

    digests = np.concatenate([_of_part(task, number, "digests") for number in task.shards])
    skipped_at = _skipped(task)
    skipped = [{"path": path(i), "reason": reason} for i, reason in skipped_at.items()]
    check_skipped(skipped, task.count, max_skipped, _facts_of_listing(task))
    usable = np.ones(task.count, dtype=bool)
    usable[list(skipped_at)] = False
    classes = task.facts["classes"]
    found = duplicates.resolve(digests, usable, labels, test, classes, path)
    train, tested = np.flatnonzero(found.keep & ~test), np.flatnonzero(found.keep & test)
    if test.any() and not len(tested):
        raise UserError("none of the test images can be read: give others, or no data.test")
    parts = {"train": train, "test": tested} if len(tested) else {"train": train}
    classes = [sources.shown(name) for name in classes]
    with store.writing("dataset", task.key) as draft:
        for part, index in parts.items():
            _write_images(draft.path / f"{part}_images.npy", task, index)
            np.save(draft.path / f"{part}_labels.npy", found.labels[index])
        _write_files(draft, task, {"train": train, "test": tested})
        skip_notes = _skip_warning(skipped, skipped_at, labels, test)
        draft.write_record(
            {
                "name": "folders",
                "classes": classes,
                "content_hash": duplicates.content_hash(
                    {part: (digests[index], found.labels[index]) for part, index in parts.items()},
                    classes,
                ),
                "image_shape": [task.size, task.size, 3],
                "flip": True,
                "num_train": len(train),
                "num_test": len(tested) if test.any() else None,
                "num_files": task.count,
                "skipped": skipped,
                "others": task.facts["others"],
                "non_images": task.facts["non_images"],
                "duplicates": found.groups,
                "duplicate_counts": found.counts,
                "data_warnings": [*task.facts["warnings"], *skip_notes, *found.warnings],
                "seconds": time.perf_counter() - started,
            }
        )
    files, folder_path = open_files(task.folder)
    with contextlib.suppress(OSError):
        files.rm(folder_path, recursive=True)


def _facts_of_listing(task: DecodeTask) -> dict[str, Any]:
    """What is known of images that are refused, as a record would have it."""
    return {
        "name": "folders",
        "classes": [sources.shown(name) for name in task.facts["classes"]],
        "image_shape": [task.size, task.size, 3],
        "others": task.facts["others"],
        "non_images": task.facts["non_images"],
        "data_warnings": task.facts["warnings"],
    }


def _skip_warning(
    skipped: Sequence[dict[str, str]], at: dict[int, str], labels: np.ndarray, test: np.ndarray
) -> list[str]:
    if not skipped:
        return []
    sets = ("test" if test[i] else "labeled" if labels[i] != UNKNOWN else "unlabeled" for i in at)
    counts = ", ".join(f"{number} {name}" for name, number in Counter(sets).items())
    example = skipped[0]
    return [
        f"{len(skipped)} of {len(test):,} images were skipped ({counts}), such as "
        f"{example['path']} ({example['reason']}); report.json lists all under data.skipped: save "
        "or fetch them anew where you need them, else take them away"
    ]


def _skipped(task: DecodeTask) -> dict[int, str]:
    """Why images at these positions could not be read."""
    found: dict[int, str] = {}
    for number in task.shards:
        reasons = json.loads(_of_part(task, number, "reasons").tobytes())
        found |= {number * task.shard + int(i): reason for i, reason in reasons.items()}
    return found


def _write_images(path: Path, task: DecodeTask, index: np.ndarray) -> None:
    """The images at ascending positions as one array on disk, written from front to back."""
    shape = (len(index), task.size, task.size, 3)
    with path.open("wb") as file:
        head = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        for number, inside in _by_shard(task, index):
            file.write(_of_part(task, number, "images")[inside].data)


def _by_shard(task: DecodeTask, index: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for number in task.shards:
        start = number * task.shard
        inside = index[(index >= start) & (index < start + task.shard)] - start
        if len(inside):
            yield number, inside


def _write_files(draft: Draft, task: DecodeTask, parts: dict[str, np.ndarray]) -> None:
    """Where the images at ascending positions came from, written shard by shard."""
    with pq.ParquetWriter(draft.path / "files.parquet", FILES) as writer:
        for part, index in parts.items():
            written = 0
            for number, inside in _by_shard(task, index):
                places = _listed(task, number)["place"].take(inside).to_pylist()
                rows = {
                    "part": [part] * len(inside),
                    "index": np.arange(written, written + len(inside)),
                    "path": [sources.shown(os.fsdecode(place)) for place in places],
                }
                writer.write_table(pa.table(rows, FILES))
                written += len(inside)


def _part(number: int) -> str:
    return f"part-{number:06d}.npz"


def _is_done(url: str) -> bool:
    files, path = open_files(url)
    if not files.exists(path):
        return False
    with files.open(path, "rb") as file:
        return zipfile.is_zipfile(file)


def _of_part(task: DecodeTask, number: int, name: str) -> np.ndarray:
    """One array of a shard's file."""
    files, path = open_files(f"{task.folder}/{_part(number)}")
    with files.open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        found: np.ndarray = arrays[name]
    return found


def _listed(task: DecodeTask, number: int | None = None) -> pa.Table:
    """Rows of the listing: of one shard, or all."""
    files, path = open_files(f"{task.folder}/{LISTING}")
    with files.open(path, "rb") as file:
        parquet = pq.ParquetFile(file)
        return parquet.read() if number is None else parquet.read_row_group(number)


def _write_whole(url: str, content: bytes | memoryview) -> None:
    """Write a file that appears in one step."""
    files, path = open_files(url)
    if not isinstance(files, LocalFileSystem):  # object stores do so by themselves
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, bytes(content))
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    target = Path(f"{path}.{uuid.uuid4().hex}")
    target.write_bytes(content)
    target.replace(path)
