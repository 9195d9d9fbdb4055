"""Images wherever they lie: what is found, and in what order."""

import os

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdfm_ray.data.images import decode
from kdfm_ray.data.inputs import find_images, read_image
from kdfm_ray.types import UserError


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), (value, 30, 90)).save(path)


@pytest.fixture
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("new/b.png", "new/a/z.jpg", "new/a/ü 1.png", "new/.hidden.png"):
        picture(tmp_path / name)
    (tmp_path / "new" / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_at_any_depth_sorted_by_path(there):
    found = find_images("new")
    assert found.names == ("new/a/z.jpg", "new/a/ü 1.png", "new/b.png")
    assert found.places == tuple(str(there / name) for name in found.names)
    assert find_images(there / "new").names == found.places


def test_a_file_a_pattern_and_a_list(there):
    assert find_images("new/b.png").names == ("new/b.png",)
    assert find_images("new/**/*.png").names == ("new/a/ü 1.png", "new/b.png")
    every = ("new/a/z.jpg", "new/a/ü 1.png", "new/b.png")
    assert find_images("new/*").names == every, "images of the folders that it matches, too"
    assert find_images(["new/b.png", there / "x.png", "new/b.png"]).names == (
        str(there / "x.png"),
        "new/b.png",
    )


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_of_paths_relative_to_its_folder(there, ending):
    table = {"note": ["1", "2", "3"], "path": ["b.png", "b.png", str(there / "new/a/z.jpg")]}
    path = there / "new" / f"list.{ending}"
    if ending == "csv":
        rows = ["\ufeffnote,path", *(",".join(row) for row in zip(*table.values(), strict=True))]
        path.write_text("\n".join(rows))
    else:
        pq.write_table(pa.table(table), path)
    assert find_images(path).names == (str(there / "new/a/z.jpg"), str(there / "new/b.png"))


def test_names_that_are_no_utf8(there):
    name = os.fsdecode(b"new/caf\xe9.png")
    picture(there / name)
    assert name in find_images("new").names


@pytest.mark.parametrize("what", ["", "/*.png", "/list.csv", "/b.png"])
def test_a_uri(there, what):
    files = fsspec.filesystem("memory")
    data = (there / "new" / "b.png").read_bytes()
    files.pipe_file("/pictures/b.png", data)
    files.pipe_file("/pictures/list.csv", b"path\nb.png\n")
    try:
        found = find_images(f"memory://pictures{what}")
        assert len(found) == 1
        assert found.names[0].endswith("pictures/b.png")
        assert found.names == found.places
        expected = decode(there / "new" / "b.png", 8)
        np.testing.assert_array_equal(read_image(found.places[0], 8, 3), expected)
    finally:
        files.rm("/pictures", recursive=True)


def test_grey_is_the_mean_of_the_colors(there):
    assert read_image(str(there / "new/b.png"), 4, 1).tolist() == [[[40]] * 4] * 4


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nowhere", "nowhere does not exist: give a folder"),
        ("none/*.png", "pattern none/*.png holds no image"),
        ("empty", "holds no image"),
        ("new/notes.txt", "neither an image nor a table"),
        ("bad.csv", "bad.csv has no column path; needed: path; found: file"),
        ("none.csv", "none.csv has no rows"),
        ("bad.parquet", "bad.parquet cannot be read"),
        ("memory://nowhere", "memory://nowhere holds no image"),
        ("memory://nowhere.csv", "cannot be read"),
        ("nonsense://bucket/x", "cannot be read"),
        ([], "empty list"),
    ],
)
def test_mistakes(there, what, message):
    (there / "empty").mkdir()
    (there / "bad.csv").write_text("file\na.png\n")
    (there / "none.csv").write_text("path\n\n")
    (there / "bad.parquet").write_text("no")
    with pytest.raises(UserError, match=None) as error:
        find_images(what)
    assert message in str(error.value)
