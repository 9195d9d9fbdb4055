"""Tables, globs, URIs and odd names: which files they give, and what is said of mistakes."""

import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdfm_ray.data.folder import list_folders, list_images
from kdfm_ray.data.sources import check_place, content, shown
from kdfm_ray.types import UserError


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 7), 50).save(path)
    return root


@pytest.fixture
def store():
    """A file system behind ``memory://``, empty."""
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True) if files.ls("/") else None


def names(place):
    return [file.name for file in list_images(place)]


def test_labeled_images_by_a_table(tmp_path):
    put(tmp_path, "pics/a.png", "pics/b é.png", "c.png")
    (tmp_path / "t.csv").write_text(
        f'label,path,more\n01,pics/a.png,x\n1,"pics/b é.png",y\n01,{tmp_path}/c.png,\n'
    )
    rows = {"path": ["pics/a.png", "pics/b é.png", str(tmp_path / "c.png")]}
    pq.write_table(pa.table(rows | {"label": ["01", "1", "01"]}), tmp_path / "t.parquet")
    for table in ("t.csv", "t.parquet"):
        listing = list_folders(tmp_path / table, None, None)
        assert listing.classes == ("01", "1"), "text as it stands, not numbers"
        assert listing.train_labels.tolist() == [0, 1, 0]
        assert [file.name for file in listing.train] == rows["path"]
        assert all(file.path.is_file() for file in listing.train)


def test_a_table_for_the_test_set_and_one_of_paths(tmp_path):
    put(tmp_path, "cat/1.png", "dog/1.png", "u/1.png", "u/2.png", "t/1.png")
    (tmp_path / "labeled.csv").write_text("path,label\ncat/1.png,cat\ndog/1.png,dog\n")
    (tmp_path / "test.csv").write_text("path,label\nt/1.png,dog\n")
    (tmp_path / "u" / "list.csv").write_text("path\n2.png\n1.png\n../cat/1.png\n")
    listing = list_folders(
        tmp_path / "labeled.csv", tmp_path / "u" / "list.csv", tmp_path / "test.csv"
    )
    assert listing.test_labels.tolist() == [1]
    assert [file.name for file in listing.train] == ["cat/1.png", "dog/1.png", "2.png", "1.png"]
    assert "no images of class cat" in listing.warnings[0]
    assert "1 files of the unlabeled folder are labeled" in listing.warnings[1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path,label\na.png,cat\n", "one class only (cat)"),
        ("file,label\na.png,cat\n", "no column path; needed: path, label; found: file, label"),
        ("path,label\n", "has no rows"),
        ("path,label\na.png,cat\nb.png,\n", "no label in 1 of 2 rows, the first is row 2"),
        ("path,label\na.png,cat,dog\n", "cannot be read"),
        (b"path,label\na.png,\xff\nb.png,dog\n", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_mistakes_in_tables_are_told(tmp_path, text, told):
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        list_folders(tmp_path / "t.csv", None, None)
    assert told in str(caught.value)
    assert "t.csv" in str(caught.value)


def test_globs(tmp_path):
    put(tmp_path, "a1.png", "a2.jpg", "b/1.png", "b/deep/2.png", "c[1].png")
    (tmp_path / "a.txt").touch()
    assert names(f"{tmp_path}/a*") == ["a1.png", "a2.jpg"]
    assert names(f"{tmp_path}/b/*/*.png") == ["deep/2.png"]
    assert len(names(f"{tmp_path}/**/*.png")) == 4
    assert len(names(f"{tmp_path}/b*")) == 2, "a folder that matches, with all in it"
    assert len(names(f"{tmp_path}/**")) == 5, "each once"
    with pytest.raises(UserError, match=r"pattern .* holds no image"):
        names(f"{tmp_path}/x*.png")
    listing = list_folders(put(tmp_path / "l", "x/1.png", "y/1.png"), f"{tmp_path}/a*", None)
    assert any("a" in text and ".txt (1)" in text for text in listing.warnings)
    assert listing.others == (f"{tmp_path}/a.txt",)


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path):
    put(tmp_path, "pets [new]/a.png")
    assert names(tmp_path / "pets [new]") == ["a.png"]


def test_odd_names(tmp_path):
    odd = ["with space.png", "ümläut.png", "日本.png", "new\nline.png", "-rf.png", "a;b'\"c.png"]
    put(tmp_path, *odd, "NO_ENDING.PNG")
    os.rename(tmp_path / "NO_ENDING.PNG", tmp_path / "NO_ENDING")
    (tmp_path / "README").write_text("no image")
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    Image.new("L", (9, 7)).save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", raw)
    warnings = []
    found = list_images(tmp_path, "unlabeled", warnings)
    assert {file.name for file in found} == {*odd, "NO_ENDING", os.fsdecode(b"\xff\xfe.png")}
    assert "none (1)" in warnings[0]
    assert shown(os.fsdecode(b"\xff\xfe.png")) == "\\xff\\xfe.png"


def test_links_in_circles_and_to_nothing(tmp_path):
    put(tmp_path, "real/a.png", "other/b.png")
    (tmp_path / "real" / "to_other").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "to_real").symlink_to(tmp_path / "real")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    assert names(tmp_path) == ["gone.png", "other/b.png", "other/to_real/a.png", "self.png"]


def test_uris(store, tmp_path):
    picture = (put(tmp_path, "a.png") / "a.png").read_bytes()
    for name in ("cat/1.png", "cat/deep/2.png", "dog/1.png", "dog/raw", "loose.png"):
        store.pipe_file(f"/bucket/labeled/{name}", picture)
    store.pipe_file("/bucket/labeled/dog/notes.txt", b"x")
    store.pipe_file("/bucket/labeled/.hidden/1.png", picture)
    listing = list_folders("memory://bucket/labeled", None, None)
    assert listing.classes == ("cat", "dog")
    found = [file.name for file in listing.train]
    assert found == ["cat/1.png", "cat/deep/2.png", "dog/1.png", "dog/raw"]
    assert content(listing.train[0].place) == picture
    assert ".txt (1)" in listing.warnings[0]
    assert "loose.png" in listing.warnings[1]
    before = listing.fingerprint()
    assert list_folders("memory://bucket/labeled", None, None).fingerprint() == before
    store.pipe_file("/bucket/labeled/cat/1.png", picture)
    assert list_folders("memory://bucket/labeled", None, None).fingerprint() != before
    assert len(names("memory://bucket/labeled/*/*.png")) == 2

    store.pipe_file("/bucket/t.csv", f"path\nlabeled/cat/1.png\nfile://{tmp_path}/a.png\n".encode())
    files = list_images("memory://bucket/t.csv")
    assert [content(file.place) for file in files] == [picture, tmp_path / "a.png"]
    with pytest.raises(UserError, match=r"memory://bucket/nowhere holds no image"):
        list_images("memory://bucket/nowhere")
    with pytest.raises(UserError, match=r"table memory://bucket/no.csv cannot be read"):
        list_images("memory://bucket/no.csv")


def test_a_file_uri_is_a_local_path(tmp_path):
    put(tmp_path, "a.png")
    (file,) = list_images(f"file://{tmp_path}")
    assert file.path == tmp_path / "a.png"


def test_what_is_said_before_anything_is_read(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "t.csv").touch()
    assert check_place(str(tmp_path)) is None
    assert check_place(str(tmp_path / "t.csv")) is None
    assert check_place("s3://bucket/nowhere") is None
    assert check_place(f"{tmp_path}/*.png", pattern=True) is None
    assert check_place(f"{tmp_path}/*.png") is not None
    assert check_place(str(tmp_path / "a.png")).startswith("no such folder or CSV / Parquet file")
