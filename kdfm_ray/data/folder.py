"""Images of the user's own: find them, and say what is wrong with where they lie.

Listing reads no pixels. ``jobs/decode.py`` reads them.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from kdfm_ray.data import sources
from kdfm_ray.data.images import MOST_NAMED, suffixes
from kdfm_ray.data.sources import HIDDEN, ImageFile, Tree
from kdfm_ray.types import UNKNOWN, UserError

_LAYOUT = "one subfolder per class, such as {folder}/cat/1.jpg and {folder}/dog/1.jpg"


@dataclass(frozen=True, eq=False)
class Listing:
    """The files behind a data set of the user's own, in the order of its images.

    Attributes:
        classes: names of the classes, sorted; position = class number.
        train: labeled files followed by unlabeled ones.
        train_labels: int64, -1 for the unlabeled files.
        test: files of the test set; empty where there is none.
        test_labels: int64.
        warnings: what a person should know, such as files that were passed over.
        others: places of files that are no images by their name.
        hidden: how many files and folders were passed over for a hidden name.
        roots: local folders that every node has to see.
    """

    classes: tuple[str, ...]
    train: tuple[ImageFile, ...]
    train_labels: Int64[np.ndarray, " train"]
    test: tuple[ImageFile, ...]
    test_labels: Int64[np.ndarray, " test"]
    warnings: tuple[str, ...]
    others: tuple[str, ...] = ()
    hidden: int = 0
    roots: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Content key (hex) of names, sizes, times, labels and order.

        Contents are not read: a file that changed at equal size and time goes unseen, and a copy
        with new times counts as new. Where the folders lie does not count.
        """
        digest = hashlib.sha256("\n".join(self.classes).encode(errors="surrogateescape"))
        for files, labels in ((self.train, self.train_labels), (self.test, self.test_labels)):
            digest.update(f"\n{len(files)}\n".encode())
            for file in files:
                line = f"{file.name}\0{file.facts}\n"
                digest.update(line.encode(errors="surrogateescape"))
            digest.update(labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def non_images(self) -> dict[str, int]:
        """How many files were passed over for their name, by ending."""
        found = Counter(sources.ending(name) or "none" for name in self.others)
        return dict(sorted(found.items())) | ({HIDDEN: self.hidden} if self.hidden else {})


class _Notes:
    """What is found beside images on the way."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.others: list[str] = []
        self.hidden = 0

    def pass_over(self, place: str, tree: Tree) -> None:
        self.others += [sources.join(place, name) for name in tree.others]
        self.hidden += tree.hidden


def list_folders(
    labeled: str | Path, unlabeled: str | Path | None, test: str | Path | None
) -> Listing:
    """Find the images of a data set of the user's own without reading them.

    ``labeled`` and ``test`` are folders with one subfolder per class and images at any depth
    inside it, or tables of ``path,label``; ``unlabeled`` is a folder with images at any depth, a
    glob, or a table of ``path``. Each may lie behind a URI. Links are followed, hidden names are
    passed over.
    An unlabeled file that is also a labeled or a test file (a link, or one folder inside the other)
    counts there only: a validation image must not come back as an unlabeled one. A file that is
    both labeled and test stays in both lists: such copies are resolved by their pixels.

    Raises:
        UserError: a place is missing, cannot be read or holds no image; no class, or only one; a
            class without images; a test class that is not a labeled one; a folder inside
            ``labeled``.
    """
    notes = _Notes()
    places = [None if each is None else sources.normal(each) for each in (labeled, unlabeled, test)]
    labeled_at, unlabeled_at, test_at = places
    assert labeled_at is not None
    _check_nesting(labeled_at, unlabeled_at, test_at)
    classes, train, train_labels = _list_labeled(labeled_at, "labeled", None, notes)
    labeled_ids = {file.identity for file in train}
    test_files: list[ImageFile] = []
    test_labels = np.empty(0, dtype=np.int64)
    if test_at is not None:
        names, test_files, test_labels = _list_labeled(test_at, "test", classes, notes)
        if absent := [name for name in classes if name not in names]:
            notes.warnings.append(
                f"the test folder has no images of class {_some(absent)}: add some, else nobody "
                "knows how often that class is found"
            )
    spare: list[ImageFile] = []
    if unlabeled_at is not None:
        every = _list_unlabeled(unlabeled_at, "unlabeled", notes)
        taken = labeled_ids | {file.identity for file in test_files}
        spare = [file for file in every if file.identity not in taken]
        if left := len(every) - len(spare):
            notes.warnings.append(
                f"{left} files of the unlabeled folder are labeled or test images too, and count "
                "there only: nothing needs mending, but give more if you meant to have more"
            )
    return Listing(
        classes=classes,
        train=(*train, *spare),
        train_labels=np.append(train_labels, np.full(len(spare), UNKNOWN, dtype=np.int64)),
        test=tuple(test_files),
        test_labels=test_labels,
        warnings=tuple(notes.warnings),
        others=tuple(notes.others),
        hidden=notes.hidden,
        roots=tuple(place for place in places if place is not None and _is_local(place)),
    )


def list_images(
    place: str | Path, what: str = "image", warnings: list[str] | None = None
) -> list[ImageFile]:
    """All images of a folder (at any depth), a glob, or a table of ``path``.

    Args:
        place: where to look; may be a URI.
        what: the place's part in messages, such as ``unlabeled``.
        warnings: gets a line when other files were passed over.

    Raises:
        UserError: the place is missing, cannot be read or holds no image.
    """
    notes = _Notes()
    files = _list_unlabeled(sources.normal(place), what, notes)
    if warnings is not None:
        warnings += notes.warnings
    return files


def _list_unlabeled(place: str, what: str, notes: _Notes) -> list[ImageFile]:
    if sources.is_table(place):
        _check_there(place, what)
        (paths,) = sources.read_table(place, ["path"], what)
        return sources.list_paths(place, paths)
    if sources.is_glob(place):
        tree = sources.list_glob(place)
        kind = "pattern"
    else:
        _check_there(place, what)
        tree = sources.list_tree(place)
        kind = "folder"
    if not tree.files:
        raise UserError(
            f"the {what} {kind} {place} holds no image{_instead(tree.others)}. Images are known by "
            f"their ending: {_endings()}. Put images there, or name another folder."
        )
    if tree.others:
        notes.warnings.append(_passed_over(place, tree.others))
    notes.pass_over("" if kind == "pattern" else place, tree)
    return tree.files


def _list_labeled(
    place: str, what: str, classes: tuple[str, ...] | None, notes: _Notes
) -> tuple[tuple[str, ...], list[ImageFile], np.ndarray]:
    """Class names of a place, its files, and their numbers in ``classes`` (default: its own)."""
    _check_there(place, what)
    if sources.is_table(place):
        paths, labels = sources.read_table(place, ["path", "label"], what)
        names = tuple(sorted(set(labels)))
        _check_classes(place, what, names, classes)
        numbers = {name: number for number, name in enumerate(classes or names)}
        files = sources.list_paths(place, paths)
        return names, files, np.array([numbers[label] for label in labels], dtype=np.int64)
    names = tuple(sources.subfolders(place))
    if not names:
        direct = len(sources.loose(place))
        raise UserError(
            f"the {what} folder {place} has no class subfolders"
            + (f" ({direct} images lie in it directly)" if direct else "")
            + f". Needed: {_LAYOUT.format(folder=place)}."
        )
    _check_classes(place, what, names, classes)
    files, numbers_found = _list_classes(place, what, names, classes or names, notes)
    return names, files, numbers_found


def _check_classes(
    place: str, what: str, names: Sequence[str], classes: Sequence[str] | None
) -> None:
    if classes is None and len(names) == 1:
        raise UserError(
            f"the {what} folder {place} has one class only ({names[0]}); a classifier needs at "
            f"least two. Needed: {_LAYOUT.format(folder=place)}."
        )
    if classes is not None and (other := [name for name in names if name not in classes]):
        raise UserError(
            f"the {what} folder {place} has classes that the labeled folder has not: "
            f"{_some(other)}. Allowed: {_some(classes)}. Rename or remove them."
        )


def _list_classes(
    place: str, what: str, names: Sequence[str], classes: Sequence[str], notes: _Notes
) -> tuple[list[ImageFile], np.ndarray]:
    """Files of the subfolders ``names``, class by class, with their numbers in ``classes``."""
    files: list[ImageFile] = []
    labels: list[int] = []
    empty = []
    passed: list[str] = []
    for name in names:
        tree = sources.list_tree(sources.join(place, name))
        if not tree.files:
            empty.append(name + _instead(tree.others))
        files += [
            ImageFile(file.place, f"{name}/{file.name}", file.facts, file.identity)
            for file in tree.files
        ]
        labels += [classes.index(name)] * len(tree.files)
        passed += tree.others
        notes.pass_over(sources.join(place, name), tree)
    if empty:
        raise UserError(
            f"class subfolders of the {what} folder {place} hold no image: {_some(empty)}. Images "
            f"are known by their ending: {_endings()}. Put images there, or remove the subfolder."
        )
    if passed:
        notes.warnings.append(_passed_over(place, passed))
    if direct := sources.loose(place):
        notes.warnings.append(
            f"passed over in {place}, images in no class subfolder ({_some(direct)}): move them "
            "into the subfolder of their class"
        )
    return files, np.array(labels, dtype=np.int64)


def _check_there(place: str, what: str) -> None:
    if sources.is_uri(place):
        return  # listing says it
    if not os.path.exists(place):
        raise UserError(f"the {what} folder {place} does not exist. Check the path.")
    if not os.path.isdir(place) and not sources.is_table(place):
        raise UserError(
            f"the {what} folder {place} is a file; name the folder that holds it, or a CSV or "
            "Parquet file that lists images."
        )


def _check_nesting(labeled: str, unlabeled: str | None, test: str | None) -> None:
    """A folder inside ``labeled`` would be taken for a class."""
    if test is not None and _same(test, labeled):
        raise UserError(
            f"the test folder and the labeled folder are the same ({test}). What is tested on must "
            "not be trained on; name another folder, or none."
        )
    if sources.is_uri(labeled) or sources.is_table(labeled):
        return
    for what, folder in (("unlabeled", unlabeled), ("test", test)):
        if folder is None or not _is_local(folder) or not os.path.isdir(folder):
            continue
        if Path(labeled).resolve() in Path(folder).resolve().parents:
            raise UserError(
                f"the {what} folder {folder} lies inside the labeled folder {labeled}, whose "
                "subfolders are the classes. Move it beside the labeled folder."
            )


def _same(one: str, other: str) -> bool:
    if sources.is_uri(one) or sources.is_uri(other):
        return one.rstrip("/") == other.rstrip("/")
    return Path(one).resolve() == Path(other).resolve()


def _is_local(place: str) -> bool:
    return not sources.is_uri(place) and not sources.is_glob(place)


def _endings() -> str:
    common = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp", ".gif")
    return ", ".join(end for end in common if end in suffixes()) + " and others that Pillow reads"


def _count(others: Iterable[str]) -> str:
    found = Counter(sources.ending(name) for name in others)
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return _some([f"{end or 'none'} ({count})" for end, count in ranked])


def _instead(others: Sequence[str]) -> str:
    return f" (endings found: {_count(others)})" if others else ""


def _passed_over(place: str, others: Sequence[str]) -> str:
    return (
        f"passed over in {place}, not images by their ending ({_count(others)}): rename or convert "
        "those that are images; the others do no harm"
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(sources.shown(name) for name in names[:MOST_NAMED]) + more
