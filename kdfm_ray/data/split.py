"""Who trains with a label, who without, and who validates: drawn once, saved, hashed.

Legend: N images of the training set, K classes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from kdfm_ray.data.streams import permutation
from kdfm_ray.types import UNKNOWN, UserError

MAX_VAL = 5000  # DESIGN of the method: 5,000 of Fashion-MNIST's 60,000 validate
FEW_LABELS = 5  # below that a class has next to nothing to learn from and to validate on
FEW_VAL = 50  # below this one image moves the accuracy by more than two points
_PARTS = ("labeled_index", "unlabeled_index", "val_index")


@dataclass(frozen=True, eq=False)
class Split:
    """Positions in ``Dataset.train``, each array int64, sorted, without repetition.

    Attributes:
        labeled_index: images whose label may be used.
        unlabeled_index: everything but validation: the labeled images too, and those without label.
        val_index: validation images; never trained on, with or without label.
        warnings: what a person should know about this split; not part of the hash.
    """

    labeled_index: Int64[np.ndarray, " labeled"]
    unlabeled_index: Int64[np.ndarray, " unlabeled"]
    val_index: Int64[np.ndarray, " val"]
    warnings: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for name in _PARTS:
            index = getattr(self, name)
            if index.dtype != np.int64 or index.ndim != 1:
                raise ValueError(f"{name}: int64 [n] expected, got {index.dtype} {index.shape}")
            if (np.diff(index) <= 0).any() or (index < 0).any():
                raise ValueError(f"{name}: positions must be sorted, distinct and not negative")
        if np.intersect1d(self.unlabeled_index, self.val_index, assume_unique=True).size:
            raise ValueError("a validation image is also in unlabeled_index")
        if np.setdiff1d(self.labeled_index, self.unlabeled_index, assume_unique=True).size:
            raise ValueError("a labeled image is not in unlabeled_index")

    def hash(self) -> str:
        """SHA-256 (hex) of the three index arrays; the same however they were saved."""
        digest = hashlib.sha256(b"kdfm_ray split 1")
        for name in _PARTS:
            index = getattr(self, name)
            digest.update(f"\n{name} {len(index)}\n".encode())
            digest.update(index.astype("<i8").tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write ``.npz`` (three int64 arrays, the warnings, the hash), whole or not at all."""
        path = Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        arrays = {name: getattr(self, name) for name in _PARTS}
        try:
            with part.open("wb") as file:  # a file object, or savez would add a suffix of its own
                np.savez_compressed(
                    file,
                    warnings=np.array(self.warnings, dtype=np.str_),
                    hash=self.hash(),
                    **arrays,
                )
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Split:
        """Read what ``save`` wrote.

        Raises:
            UserError: there is no such file, it is not a split, or it was changed since.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                split = cls(
                    labeled_index=file["labeled_index"],
                    unlabeled_index=file["unlabeled_index"],
                    val_index=file["val_index"],
                    warnings=tuple(str(text) for text in file["warnings"]),
                )
                written = str(file["hash"])
        except FileNotFoundError:
            raise UserError(f"there is no split file {path}") from None
        except (
            Exception
        ) as error:  # zip, header, missing array, wrong dtype: all the same to a user
            raise UserError(
                f"{path} cannot be read as a split ({error}). It should be a split.npz as a run "
                "writes it; run again to make a new one."
            ) from error
        if split.hash() != written:
            raise UserError(f"{path} was changed after it was written: its hash does not match.")
        return split


def make_split(
    labels: Int64[np.ndarray, " n"],
    num_classes: int,
    classes: Sequence[str] | None = None,
    *,
    num_labels: int | None,
    num_val: int | None,
    split_seed: int,
) -> Split:
    """Draw validation and labeled images; the same for the same arguments on any platform.

    Each class has one random order by ``split_seed``. Validation takes from its end, the labeled
    set from its start. So for one seed the labeled images of a small ``num_labels`` are among those
    of a larger one, and, while no class runs short, they do not depend on ``num_val``.

    *Validation* is stratified (proportional to the classes, largest remainders first) and leaves
    every class an image. *Labeled* images are class-balanced: ``num_labels // K`` a class, and the
    seed says which classes get one of the remainder. A class that has fewer than its share gives
    all it has, and the others share what is missing as evenly as they can, with a warning.

    Args:
        labels: int64 ``[N]``, class number or -1 (unknown).
        num_classes: K.
        classes: class names for messages.
        num_labels: labeled images to draw; ``None``: all known labels that do not validate.
        num_val: validation images; ``None``: a tenth of the known labels, at most 5,000, and at
            least one a class where that takes no more than a fifth of them. 0: none.
        split_seed: seed.

    Raises:
        UserError: a class without a labeled image, fewer labels than classes, or more labels and
            validation images than there are known labels.
    """
    names = [str(k) for k in range(num_classes)] if classes is None else [str(c) for c in classes]
    if len(names) != num_classes:
        raise ValueError(f"{num_classes} classes, but {len(names)} class names")
    if num_classes < 1 or ((labels < UNKNOWN) | (labels >= num_classes)).any():
        raise ValueError(f"labels must be in -1..{num_classes - 1}")

    counts = np.bincount(labels[labels != UNKNOWN], minlength=num_classes)
    known = int(counts.sum())
    if num_val is None:
        at_least = min(num_classes, known // 5)
        num_val = max(0, min(MAX_VAL, max(known // 10, at_least), known - num_classes))
    _check(counts, names, num_labels, num_val)

    val_counts = _proportional(
        counts, num_val, permutation(num_classes, split_seed, 0, "split/val")
    )
    available = counts - val_counts
    if num_labels is None:
        take = available
    else:
        extra_order = permutation(num_classes, split_seed, 0, "split/extra")
        take = _balanced(available, num_labels, extra_order)

    val, labeled = [], []
    for k in range(num_classes):
        members = np.flatnonzero(labels == k)
        members = members[permutation(len(members), split_seed, k, "split/class")]
        val.append(members[len(members) - val_counts[k] :])
        labeled.append(members[: take[k]])
    val_index = np.sort(np.concatenate(val))
    keep = np.ones(len(labels), dtype=bool)
    keep[val_index] = False
    return Split(
        labeled_index=np.sort(np.concatenate(labeled)),
        unlabeled_index=np.flatnonzero(keep),
        val_index=val_index,
        warnings=_warnings(names, counts, val_counts, take, num_labels),
    )


def _check(counts: np.ndarray, names: list[str], num_labels: int | None, num_val: int) -> None:
    """Refuse what cannot be drawn, saying what can."""
    num_classes, known = len(counts), int(counts.sum())
    empty = [name for name, count in zip(names, counts, strict=True) if count == 0]
    if empty:
        raise UserError(
            f"no labeled image of class {_some(empty)}: every class needs at least one. "
            "Add images, or leave the class out."
        )
    if num_labels is not None and num_labels < num_classes:
        raise UserError(
            f"num_labels = {num_labels} is fewer than one for each of the {num_classes} classes; "
            f"allowed: {num_classes} to {known}."
        )
    if num_val < 0:
        raise UserError(f"num_val = {num_val}: the number of validation images cannot be negative.")
    if num_labels is not None and num_labels > known:
        raise UserError(
            f"num_labels = {num_labels}, but only {known} training images have a label; "
            f"allowed: {num_classes} to {known - min(num_val, known - num_classes)} "
            "(validation images are taken out first)."
        )
    needed = num_classes if num_labels is None else num_labels
    if num_val + needed > known:
        what = "one labeled image a class" if num_labels is None else f"num_labels = {num_labels}"
        other = f", or num_labels to at most {known - num_val}"
        raise UserError(
            f"num_val = {num_val} validation images and {what} need {num_val + needed} images with "
            f"a label, but there are {known}. Set num_val to at most {known - needed}"
            + (other if num_labels is not None and known - num_val >= num_classes else "")
            + "."
        )


def _proportional(counts: np.ndarray, total: int, order: np.ndarray) -> np.ndarray:
    """``total`` divided among classes in proportion to ``counts``, each class keeping one image.

    Largest remainders are rounded up, equal ones in the given order; integers throughout, so that
    no platform rounds differently. Needs ``total <= sum(counts - 1)``.
    """
    known = int(counts.sum())
    given, remainder = np.divmod(counts * total, known)
    room = counts - 1 - given
    while (left := total - int(given.sum())) > 0:
        ranked = order[np.argsort(-remainder[order], kind="stable")]
        chosen = ranked[room[ranked] > 0][:left]
        given[chosen] += 1
        room[chosen] -= 1
    return given


def _balanced(available: np.ndarray, total: int, order: np.ndarray) -> np.ndarray:
    """``total`` divided evenly among classes; who is short gives all, the others share the rest.

    What does not divide goes one each to the first classes in the given order.
    Needs ``total <= sum(available)``.
    """
    given = np.zeros_like(available)
    while (left := total - int(given.sum())) > 0:
        open_ = order[given[order] < available[order]]
        share = left // len(open_)
        if share == 0:
            given[open_[:left]] += 1
        else:
            given[open_] = np.minimum(given[open_] + share, available[open_])
    return given


def _warnings(
    names: list[str],
    counts: np.ndarray,
    val_counts: np.ndarray,
    take: np.ndarray,
    num_labels: int | None,
) -> tuple[str, ...]:
    texts = []
    if few := [f"{names[k]} ({counts[k]})" for k in np.flatnonzero(counts < FEW_LABELS)]:
        texts.append(
            f"fewer than {FEW_LABELS} labeled images of class {_some(few)}: what is validated on "
            "is too few to tell, and to train on even fewer; label more"
        )
    if num_labels is not None:
        share = num_labels // len(names)
        short = [f"{names[k]} ({take[k]})" for k in np.flatnonzero(take < share)]
        if short:
            texts.append(
                f"the labeled set is not class-balanced: fewer than {share} labeled images of "
                f"class {_some(short)}, and more of others: label more of those classes, or lower "
                "data.num_labels"
            )
    total = int(val_counts.sum())
    if total == 0:
        texts.append(
            "no validation images: nothing can be selected or stopped by accuracy, nor confidence "
            "be calibrated; raise data.num_val, or label more images"
        )
    else:
        missing = [names[k] for k in np.flatnonzero(val_counts == 0)]
        if missing:
            texts.append(
                f"no validation image of class {_some(missing)}: label more of them, or raise "
                "data.num_val"
            )
        if total < FEW_VAL:
            texts.append(
                f"only {total} validation images: one image is {100 / total:.1f} points of "
                "accuracy; raise data.num_val or label more before relying on small differences"
            )
    return tuple(texts)


def _some(names: list[str], most: int = 10) -> str:
    text = ", ".join(names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"
