"""The same picture more than once: which copies count, and what is said of it.

Two images are the same when their pixels are, as decoded to the run's image size: so a PNG saved
again as BMP, or a JPEG with another EXIF block, is found, and what a network could not tell apart
counts as the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from kdfm_ray.types import UNKNOWN

DIGEST = 16  # bytes
MOST_PATHS = 10  # of one picture that a record lists
MOST_GROUPS = 1000  # pictures that a record lists


def digest(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, " bytes"]:
    """What is equal for equal pixels."""
    found = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=DIGEST).digest()
    return np.frombuffer(found, dtype=np.uint8)


def content_hash(
    parts: Mapping[str, tuple[UInt8[np.ndarray, "n bytes"], Int64[np.ndarray, " n"]]],
    classes: Sequence[str],
) -> str:
    """SHA-256 (hex) of what a run sees of its images: pixels and labels in order, and classes.

    It is the same wherever the files lie, and whatever they are called and when they were written.

    Args:
        parts: of ``train`` and ``test``, where there is one: digests and labels (-1: unknown).
        classes: names.
    """
    found = hashlib.sha256(b"kdfm_ray images 1")
    for name in classes:
        found.update(f"\n{name}".encode())
    for part, (digests, labels) in parts.items():
        found.update(f"\n{part} {len(labels)}\n".encode())
        found.update(np.ascontiguousarray(digests).tobytes())
        found.update(labels.astype("<i8").tobytes())
    return found.hexdigest()


@dataclass(frozen=True, eq=False)
class Resolved:
    """What is left of images, some of which occur more than once.

    Attributes:
        keep: bool ``[N]``, images that take part.
        labels: int64 ``[N]``, -1 now where an image had two classes.
        groups: pictures that occur in two sets, or more than once among the labeled ones:
            ``{"paths": [...], "sets": {set: copies}, "classes": [...], "done": what was done}``.
        counts: how many images each rule concerned.
        warnings: the same in words.
    """

    keep: Bool[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    groups: list[dict[str, Any]]
    counts: dict[str, int]
    warnings: tuple[str, ...]


def resolve(
    digests: UInt8[np.ndarray, "n bytes"],
    usable: Bool[np.ndarray, " n"],
    labels: Int64[np.ndarray, " n"],
    test: Bool[np.ndarray, " n"],
    classes: Sequence[str],
    path: Callable[[int], str],
) -> Resolved:
    """Have test images leave training, and each labeled picture stay once, with one class.

    - A test image is never trained on: its labeled and unlabeled copies are left out.
    - A labeled picture stays once, and its unlabeled copies are left out: else it could validate
      and train.
    - A picture that was labeled with two classes has none: it stays once, unlabeled.
    - Copies among the unlabeled images alone, or the test images alone, all stay.

    Args:
        digests: of each image.
        usable: whether the image could be decoded; others are left out.
        labels: class number, or -1.
        test: whether it is of the test set.
        classes: names.
        path: position -> where the image lies.
    """
    keep, labels = usable.copy(), labels.copy()
    sets = np.where(test, 2, np.where(labels != UNKNOWN, 0, 1))
    before = labels.copy()
    counts = dict.fromkeys(COUNTED, 0)
    groups: list[dict[str, Any]] = []
    examples: dict[str, str] = {}
    for members in _equal(digests, usable):
        tests, labeled, spare = (members[sets[members] == number] for number in (2, 0, 1))
        if not len(labeled) and not (len(tests) and len(spare)):
            kind = "test_copies" if len(tests) else "unlabeled_copies"
            counts[kind] += len(members) - 1
            if len(np.unique(before[tests])) < 2:
                continue
        two_classes = len(np.unique(before[np.append(labeled, tests)])) > 1
        if len(tests):
            left, done = np.append(labeled, spare), "left out of training"
            counts["test_in_labeled"] += len(labeled)
            counts["test_in_unlabeled"] += len(spare)
            kind = "test_in_labeled" if len(labeled) else "test_in_unlabeled"
            if not len(left):
                done = "kept"
        elif two_classes:
            left, done = np.append(labeled[1:], spare), "kept once, unlabeled"
            labels[labeled[0]] = UNKNOWN
        else:
            left, done = np.append(labeled[1:], spare), "kept once, labeled"
            counts["labeled_copies"] += len(labeled) - 1
            counts["labeled_in_unlabeled"] += len(spare)
            kind = "labeled_copies" if len(labeled) > 1 else "labeled_in_unlabeled"
        if two_classes:
            kind = "two_classes"
            counts[kind] += 1
        keep[left] = False
        paths = [path(int(i)) for i in (*labeled, *tests, *spare)[:MOST_PATHS]]
        known = [classes[before[i]] for i in (*labeled, *tests)[:MOST_PATHS]]
        if len(groups) < MOST_GROUPS:
            found = {"labeled": len(labeled), "unlabeled": len(spare), "test": len(tests)}
            shares = {name: number for name, number in found.items() if number}
            group = {"paths": paths, "sets": shares, "classes": sorted(set(known)), "done": done}
            groups.append(group)
        examples.setdefault(kind, _example(paths, known if two_classes else []))
    return Resolved(keep, labels, groups, counts, _warnings(counts, examples))


# What is counted, and what a person is told of it.
COUNTED = {
    "two_classes": "{n} pictures are labeled with more than one class, such as {example}; of those "
    "that are not test images each counts once, unlabeled: mend their labels",
    "test_in_labeled": "{n} labeled images are test images too and are left out of training, such "
    "as {example}: take them out of one of the two, and look how the sets were divided",
    "test_in_unlabeled": "{n} unlabeled images are test images too and are left out of training, "
    "such as {example}: nothing needs mending, but look how the sets were divided",
    "labeled_copies": "{n} labeled images are copies of other labeled ones and are left out, such "
    "as {example}: label other images in their place",
    "labeled_in_unlabeled": "{n} unlabeled images are labeled ones too and count there only, such "
    "as {example}: nothing needs mending",
    "unlabeled_copies": "",  # how often a picture occurs is part of the data
    "test_copies": "",
}


def _warnings(counts: dict[str, int], examples: dict[str, str]) -> tuple[str, ...]:
    return tuple(
        text.format(n=counts[kind], example=examples.get(kind, "those in data.duplicates"))
        for kind, text in COUNTED.items()
        if text and counts[kind]
    )


def _example(paths: Sequence[str], known: Sequence[str]) -> str:
    if not known:
        return " = ".join(paths[:2])
    first, other = 0, next(i for i, name in enumerate(known) if name != known[0])
    return f"{paths[first]} ({known[first]}) = {paths[other]} ({known[other]})"


def _equal(digests: np.ndarray, usable: np.ndarray) -> list[np.ndarray]:
    """Ascending positions of each picture that occurs more than once, by first position."""
    rows = np.flatnonzero(usable)
    if not len(rows):
        return []
    values = np.ascontiguousarray(digests[rows]).view(np.dtype((np.void, DIGEST))).reshape(-1)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    ends = np.append(starts[1:], len(rows))
    repeated = np.flatnonzero(ends - starts > 1)  # no object for each of the others
    groups = [rows[order[starts[i] : ends[i]]] for i in repeated]
    return sorted(groups, key=lambda group: int(group[0]))
