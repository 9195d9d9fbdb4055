"""Folders of the user's own: find the images, say what is wrong with them, load them.

Listing reads no pixels. Loading gives three channels for grey images too, so that a folder data
set has one shape whatever lies in it.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from kdfm_ray.data.images import MOST_NAMED, decode_files, suffixes
from kdfm_ray.types import UNKNOWN, Dataset, Emit, ImageSet, UserError

_LAYOUT = "one subfolder per class, such as {folder}/cat/1.jpg and {folder}/dog/1.jpg"


@dataclass(frozen=True)
class ImageFile:
    """An image file; ``name`` is its path relative to ``root``, with forward slashes."""

    root: Path
    name: str

    @property
    def path(self) -> Path:
        return self.root / self.name


@dataclass(frozen=True, eq=False)
class FolderListing:
    """The files behind a folder data set, in the order of its images.

    Attributes:
        classes: names of the class subfolders, sorted; position = class number.
        train: labeled files followed by unlabeled ones, as in ``Dataset.train``.
        train_labels: int64, -1 for the unlabeled files.
        test: files of the test folder; empty where there is no such folder.
        test_labels: int64.
        warnings: what a person should know, such as files that were passed over.
    """

    classes: tuple[str, ...]
    train: tuple[ImageFile, ...]
    train_labels: Int64[np.ndarray, " train"]
    test: tuple[ImageFile, ...]
    test_labels: Int64[np.ndarray, " test"]
    warnings: tuple[str, ...]

    def fingerprint(self) -> str:
        """Content key (hex) of names, sizes, times, labels and order; see ``fingerprint``."""
        digest = hashlib.sha256("\n".join(self.classes).encode(errors="surrogateescape"))
        for files, labels in ((self.train, self.train_labels), (self.test, self.test_labels)):
            digest.update(f"\n{_hash_files(files)}\n".encode())
            digest.update(labels.astype("<i8").tobytes())
        return digest.hexdigest()


def load_folders(
    labeled: Path,
    unlabeled: Path | None,
    test: Path | None,
    image_size: int,
    emit: Emit | None = None,
) -> Dataset:
    """List the folders and decode every image to ``image_size`` pixels a side (see ``decode``).

    Raises:
        UserError: as ``list_folders`` and ``decode_files``.
    """
    return load_listing(list_folders(labeled, unlabeled, test), image_size, emit)


def load_listing(listing: FolderListing, image_size: int, emit: Emit | None = None) -> Dataset:
    """Decode what ``list_folders`` found, in the listing's order; uint8 ``[N, S, S, 3]``.

    Raises:
        UserError: images that cannot be read.
    """
    files = listing.train + listing.test
    images = decode_files([file.path for file in files], image_size, emit)
    n = len(listing.train)
    return Dataset(
        name="folders",
        classes=listing.classes,
        train=ImageSet(images[:n], listing.train_labels),
        test=ImageSet(images[n:], listing.test_labels) if listing.test else None,
        flip=True,
    )


def list_folders(labeled: Path, unlabeled: Path | None, test: Path | None) -> FolderListing:
    """Find the images of a folder data set without reading them.

    ``labeled`` and ``test`` hold one subfolder per class, with images at any depth inside it;
    ``unlabeled`` holds images at any depth. Files are known by their ending, links are followed,
    hidden names are passed over. An unlabeled file that is also a labeled or a test file (a link,
    or one folder inside the other) counts there only: a validation image must not come back as an
    unlabeled one.

    Raises:
        UserError: a folder is missing, is a file, cannot be read or holds no image; no class
            subfolder, or only one; a class without images; a test class that is not a labeled one;
            a folder inside ``labeled``; a file both labeled and test.
    """
    warnings: list[str] = []
    labeled = Path(labeled).expanduser()
    unlabeled = None if unlabeled is None else Path(unlabeled).expanduser()
    test = None if test is None else Path(test).expanduser()
    _check_nesting(labeled, unlabeled, test)
    classes = _class_names(labeled, "labeled")
    train, train_labels = _list_classes(labeled, "labeled", classes, classes, warnings)
    labeled_ids = set(map(_identity, train))
    if twice := len(train) - len(labeled_ids):
        warnings.append(
            f"{twice} labeled files are links to other labeled files; the same image may train "
            "and validate"
        )
    test_files, test_labels = _list_test(test, classes, labeled_ids, warnings)
    taken = labeled_ids.union(map(_identity, test_files))
    spare: list[ImageFile] = []
    if unlabeled is not None:
        every = list_images(unlabeled, "unlabeled", warnings)
        spare = [file for file in every if _identity(file) not in taken]
        if left := len(every) - len(spare):
            warnings.append(
                f"{left} files of the unlabeled folder are labeled or test images too; they count "
                "there only"
            )
    return FolderListing(
        classes=classes,
        train=(*train, *spare),
        train_labels=np.append(train_labels, np.full(len(spare), UNKNOWN, dtype=np.int64)),
        test=tuple(test_files),
        test_labels=test_labels,
        warnings=tuple(warnings),
    )


def list_images(
    folder: Path, what: str = "image", warnings: list[str] | None = None
) -> list[ImageFile]:
    """All images below ``folder``, at any depth, sorted by relative path.

    Args:
        folder: where to look.
        what: the folder's part in messages, such as ``unlabeled``.
        warnings: gets a line when other files were passed over.

    Raises:
        UserError: the folder is missing, is a file, cannot be read or holds no image.
    """
    _check_folder(folder, what)
    names, others = _walk(folder)
    if not names:
        raise UserError(
            f"the {what} folder {folder} holds no image{_instead(others)}. Images are known by "
            f"their ending: {_endings()}. Put images there, or name another folder."
        )
    if others and warnings is not None:
        warnings.append(_passed_over(folder, others))
    return [ImageFile(folder, name) for name in names]


def fingerprint(folders: Sequence[Path]) -> str:
    """SHA-256 (hex) over relative path, size in bytes and modification time of every image.

    Contents are not read: a file that changed at equal size and time goes unseen, and a copy with
    new times counts as new. Where the folders lie does not count, their order does.

    Raises:
        UserError: a folder is missing, is a file or cannot be read.
    """
    digest = hashlib.sha256()
    for folder in folders:
        _check_folder(folder, "image")
        names, _ = _walk(folder)
        digest.update(_hash_files([ImageFile(folder, name) for name in names]).encode())
    return digest.hexdigest()


def _hash_files(files: Sequence[ImageFile]) -> str:
    digest = hashlib.sha256()
    for file in files:
        try:
            stat = file.path.stat()
            facts = f"\0{stat.st_size} {stat.st_mtime_ns}\n"
        except OSError:  # a broken link; loading names it
            facts = "\0missing\n"
        digest.update(file.name.encode(errors="surrogateescape") + facts.encode())
    return digest.hexdigest()


def _list_test(
    test: Path | None,
    classes: tuple[str, ...],
    labeled_ids: set[object],
    warnings: list[str],
) -> tuple[list[ImageFile], np.ndarray]:
    if test is None:
        return [], np.empty(0, dtype=np.int64)
    names = _class_names(test, "test")
    if other := [name for name in names if name not in classes]:
        raise UserError(
            f"the test folder {test} has classes that the labeled folder has not: {_some(other)}. "
            f"Allowed: {_some(classes)}. Rename or remove them."
        )
    if absent := [name for name in classes if name not in names]:
        warnings.append(f"the test folder has no images of class {_some(absent)}")
    files, labels = _list_classes(test, "test", names, classes, warnings)
    if both := [file.name for file in files if _identity(file) in labeled_ids]:
        raise UserError(
            f"{len(both)} files of the test folder {test} are labeled training images too: "
            f"{_some(both)}. What is tested on must not be trained on; remove them from one."
        )
    return files, labels


def _class_names(folder: Path, what: str) -> tuple[str, ...]:
    """Sorted names of the class subfolders."""
    _check_folder(folder, what)
    names = sorted(entry.name for entry in _entries(folder) if entry.is_dir())
    if not names:
        loose = len(_loose(folder))
        raise UserError(
            f"the {what} folder {folder} has no class subfolders"
            + (f" ({loose} images lie in it directly)" if loose else "")
            + f". Needed: {_LAYOUT.format(folder=folder)}."
        )
    if len(names) == 1 and what == "labeled":
        raise UserError(
            f"the {what} folder {folder} has one class only ({names[0]}); a classifier needs at "
            f"least two. Needed: {_LAYOUT.format(folder=folder)}."
        )
    return tuple(names)


def _list_classes(
    folder: Path, what: str, names: Sequence[str], classes: Sequence[str], warnings: list[str]
) -> tuple[list[ImageFile], np.ndarray]:
    """Files of the subfolders ``names``, class by class, with their numbers in ``classes``."""
    files: list[ImageFile] = []
    labels: list[int] = []
    empty = []
    passed: Counter[str] = Counter()
    for name in names:
        found, others = _walk(folder / name)
        if not found:
            empty.append(name + _instead(others))
        files += [ImageFile(folder, f"{name}/{image}") for image in found]
        labels += [classes.index(name)] * len(found)
        passed += others
    if empty:
        raise UserError(
            f"class subfolders of the {what} folder {folder} hold no image: {_some(empty)}. Images "
            f"are known by their ending: {_endings()}. Put images there, or remove the subfolder."
        )
    if passed:
        warnings.append(_passed_over(folder, passed))
    if loose := _loose(folder):
        warnings.append(
            f"passed over in {folder}, images in no class subfolder: {_some(sorted(loose))}"
        )
    return files, np.array(labels, dtype=np.int64)


def _walk(folder: Path, above: frozenset[object] = frozenset()) -> tuple[list[str], Counter[str]]:
    """Sorted relative paths of the images below a folder, and the endings of all other files."""
    here = _identity(folder)
    names: list[str] = []
    others: Counter[str] = Counter()
    if here in above:  # a link back to where we come from
        return names, others
    for entry in _entries(folder):
        if entry.is_dir():
            inner, more = _walk(Path(entry.path), above | {here})
            names += [f"{entry.name}/{name}" for name in inner]
            others += more
        # A broken link is listed, so that loading names it instead of passing it over.
        elif _ending(entry.name) in suffixes() and (entry.is_file() or entry.is_symlink()):
            names.append(entry.name)
        else:
            others[_ending(entry.name)] += 1
    return sorted(names), others


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, without hidden names and what archivers leave behind."""
    try:
        with os.scandir(folder) as found:
            return [e for e in found if not e.name.startswith(".") and e.name != "__MACOSX"]
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error.strerror}.") from error


def _loose(folder: Path) -> list[str]:
    """Images that lie beside the class subfolders."""
    return [e.name for e in _entries(folder) if not e.is_dir() and _ending(e.name) in suffixes()]


def _identity(file: ImageFile | Path) -> object:
    """Equal for two paths to the same file or folder, through links too."""
    path = file.path if isinstance(file, ImageFile) else file
    try:
        stat = path.stat()
    except OSError:
        return str(path)
    return stat.st_dev, stat.st_ino


def _check_folder(folder: Path, what: str) -> None:
    if not folder.exists():
        raise UserError(f"the {what} folder {folder} does not exist. Check the path.")
    if not folder.is_dir():
        raise UserError(f"the {what} folder {folder} is a file; name the folder that holds it.")


def _check_nesting(labeled: Path, unlabeled: Path | None, test: Path | None) -> None:
    """A folder inside ``labeled`` would be taken for a class."""
    if test is not None and test.resolve() == labeled.resolve():
        raise UserError(
            f"the test folder and the labeled folder are the same ({test}). What is tested on must "
            "not be trained on; name another folder, or none."
        )
    for what, folder in (("unlabeled", unlabeled), ("test", test)):
        if folder is not None and labeled.resolve() in folder.resolve().parents:
            raise UserError(
                f"the {what} folder {folder} lies inside the labeled folder {labeled}, whose "
                "subfolders are the classes. Move it beside the labeled folder."
            )


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _endings() -> str:
    common = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp", ".gif")
    return ", ".join(end for end in common if end in suffixes()) + " and others that Pillow reads"


def _count(others: Counter[str]) -> str:
    ranked = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    return _some([f"{end or 'none'} ({count})" for end, count in ranked])


def _instead(others: Counter[str]) -> str:
    return f" (endings found: {_count(others)})" if others else ""


def _passed_over(folder: Path, others: Counter[str]) -> str:
    return f"passed over in {folder}, not images by their ending: {_count(others)}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
