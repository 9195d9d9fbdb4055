"""Folders of the user's own: what is found, in which order, and what is said when it is wrong."""

import os
import re

import pytest
from PIL import Image

from kdfm_ray.data.folder import list_folders, list_images
from kdfm_ray.types import UNKNOWN, UserError


def put(root, *names, value=100):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 7), value).save(path)
    return root


@pytest.fixture
def pets(tmp_path):
    """Two classes with five images, three unlabeled ones, two for the test."""
    put(tmp_path / "labeled", "dog/b.png", "dog/a.jpg", "dog/old/z.PNG", value=10)
    put(tmp_path / "labeled", "cat/1.png", "cat/2.webp", value=200)
    put(tmp_path / "unlabeled", "x/y/3.png", "0.png", "x/2.png", value=50)
    put(tmp_path / "test", "dog/t.png", "cat/t.png", value=20)
    return tmp_path


def list_pets(pets):
    return list_folders(pets / "labeled", pets / "unlabeled", pets / "test")


def test_listing(pets):
    listing = list_pets(pets)
    assert listing.classes == ("cat", "dog")
    assert [file.name for file in listing.train] == [
        *("cat/1.png", "cat/2.webp", "dog/a.jpg", "dog/b.png", "dog/old/z.PNG"),
        *("0.png", "x/2.png", "x/y/3.png"),
    ]
    assert all(file.path.is_file() for file in listing.train + listing.test)
    assert listing.train_labels.tolist() == [0, 0, 1, 1, 1, *[UNKNOWN] * 3]
    assert [file.name for file in listing.test] == ["cat/t.png", "dog/t.png"]
    assert listing.test_labels.tolist() == [0, 1]
    assert listing.warnings == ()


def test_labeled_alone(pets):
    listing = list_folders(pets / "labeled", None, None)
    assert len(listing.train) == 5
    assert listing.test == ()


def test_order_does_not_hang_on_the_file_system(tmp_path):
    names = [f"{c}/{i}.png" for c in "zab" for i in (10, 9, 1)]
    found = []
    for root, order in (("one", names), ("two", names[::-1])):
        put(tmp_path / root, *order)
        found.append([file.name for file in list_folders(tmp_path / root, None, None).train])
    assert found[0] == found[1] == sorted(names)


def test_hidden_files_and_what_archivers_leave_are_passed_over(pets):
    put(pets / "labeled", "cat/.hidden.png", ".thumbs/t.png")
    (pets / "labeled/__MACOSX/cat").mkdir(parents=True)
    (pets / "labeled/cat/._1.png").write_text("no image")
    listing = list_pets(pets)
    assert listing.classes == ("cat", "dog")
    assert len(listing.train) == 8
    assert listing.warnings == ()


def test_what_is_passed_over_is_said(pets):
    (pets / "labeled/cat/notes.txt").touch()
    (pets / "unlabeled/x/a.heic").touch()
    (pets / "unlabeled/x/b.HEIC").touch()
    put(pets / "labeled", "loose.png")
    warnings = "\n".join(list_pets(pets).warnings)
    assert "not images by their ending (.txt (1)): rename or convert" in warnings
    assert "not images by their ending (.heic (2)): rename or convert" in warnings
    assert "in no class subfolder (loose.png): move them" in warnings


def test_links_to_files_and_folders(pets):
    put(pets / "store", "a.png", "more/b.png")
    (pets / "labeled/cat/link.png").symlink_to(pets / "store/a.png")
    (pets / "labeled/owl").symlink_to(pets / "store/more")
    (pets / "unlabeled/x/up").symlink_to(pets / "unlabeled")  # a circle
    listing = list_pets(pets)
    assert listing.classes == ("cat", "dog", "owl")
    names = [file.name for file in listing.train]
    assert "cat/link.png" in names
    assert "owl/b.png" in names
    assert len(names) == 10


def test_an_unlabeled_file_that_is_labeled_counts_once(pets):
    """With the parent as unlabeled folder, a validation image must not come back unlabeled."""
    listing = list_folders(pets / "labeled", pets, pets / "test")
    assert len(listing.train) == 8
    assert any("7 files of the unlabeled folder" in text for text in listing.warnings)
    listing = list_folders(pets / "labeled", pets / "labeled", None)
    assert listing.train_labels.tolist() == [0, 0, 1, 1, 1]


def test_a_class_without_test_images_is_said(pets):
    (pets / "test/dog/t.png").unlink()
    (pets / "test/dog").rmdir()
    listing = list_pets(pets)
    assert listing.test_labels.tolist() == [0]
    (warning,) = listing.warnings
    assert warning.startswith("the test folder has no images of class dog: add some")


def missing(pets):
    return pets / "nowhere", None, None


def a_file(pets):
    return pets / "labeled", pets / "unlabeled/0.png", None


def empty(pets):
    (pets / "void").mkdir()
    (pets / "void/a.heic").touch()
    return pets / "labeled", pets / "void", None


def empty_labeled(pets):
    (pets / "void").mkdir()
    return pets / "void", None, None


def no_classes(pets):
    put(pets / "loose", "1.png", "2.png")
    return pets / "loose", None, None


def one_class(pets):
    put(pets / "one", "cat/1.png")
    return pets / "one", None, None


def empty_classes(pets):
    (pets / "labeled/ant").mkdir()
    (pets / "labeled/bee").mkdir()
    (pets / "labeled/bee/a.txt").touch()
    return pets / "labeled", None, None


def other_test_classes(pets):
    put(pets / "test", "bird/1.png", "hen/1.png")
    return pets / "labeled", None, pets / "test"


def empty_test_class(pets):
    (pets / "test/cat/t.png").unlink()
    return pets / "labeled", None, pets / "test"


def same_for_test(pets):
    return pets / "labeled", None, pets / "labeled"


def nested(pets):
    put(pets / "labeled", "test/cat/1.png")
    return pets / "labeled", None, pets / "labeled/test"


def nested_unlabeled(pets):
    return pets / "labeled", pets / "labeled/cat", None


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (missing, ["labeled folder", "nowhere does not exist", "Check the path"]),
        (a_file, ["unlabeled folder", "0.png is a file", "name the folder"]),
        (empty, ["unlabeled folder", "void holds no image", ".heic (1)", ".jpg", "Put images"]),
        (empty_labeled, ["labeled folder", "void has no class subfolders", "void/cat/1.jpg"]),
        (no_classes, ["loose has no class subfolders", "2 images", "one subfolder per class"]),
        (one_class, ["one class only (cat)", "at least two"]),
        (empty_classes, ["hold no image: ant, bee (endings found: .txt (1))", "Put images"]),
        (other_test_classes, ["labeled folder has not: bird, hen", "Allowed: cat, dog", "Rename"]),
        (empty_test_class, ["test folder", "hold no image: cat"]),
        (same_for_test, ["are the same", "another folder"]),
        (nested, ["labeled/test lies inside the labeled folder", "Move it"]),
        (nested_unlabeled, ["labeled/cat lies inside the labeled folder"]),
    ],
)
def test_mistakes_are_told(pets, make, parts):
    with pytest.raises(UserError) as caught:
        list_folders(*make(pets))
    for part in parts:
        assert part in str(caught.value)


def test_a_folder_without_permission_is_told(pets, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("unlabeled/x"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything, so no chmod
    with pytest.raises(UserError, match=re.escape("unlabeled/x cannot be read: Permission denied")):
        list_pets(pets)


def test_list_images_for_prediction(pets):
    names = [file.name for file in list_images(pets / "unlabeled")]
    assert names == ["0.png", "x/2.png", "x/y/3.png"]


def test_fingerprint_changes_with_names_sizes_times_and_access(pets, monkeypatch):
    seen = [list_pets(pets).fingerprint()]
    assert list_pets(pets).fingerprint() == seen[0]
    file = pets / "unlabeled/0.png"
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    seen.append(list_pets(pets).fingerprint())
    file.write_bytes(file.read_bytes() + b"\0")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    seen.append(list_pets(pets).fingerprint())
    file.rename(pets / "unlabeled/1.png")
    seen.append(list_pets(pets).fingerprint())
    put(pets / "unlabeled", "new.png")
    seen.append(list_pets(pets).fingerprint())
    seen.append(list_folders(pets / "labeled", pets / "unlabeled", None).fingerprint())
    (pets / "labeled/dog").rename(pets / "labeled/hound")
    (pets / "test/dog").rename(pets / "test/hound")
    seen.append(list_pets(pets).fingerprint())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    seen.append(list_pets(pets).fingerprint())
    assert len(set(seen)) == len(seen)


def test_fingerprint_does_not_hang_on_the_place(pets):
    before = list_pets(pets).fingerprint()
    moved = pets / "moved"
    moved.mkdir()
    for name in ("labeled", "unlabeled", "test"):
        (pets / name).rename(moved / name)
    assert list_pets(moved).fingerprint() == before
