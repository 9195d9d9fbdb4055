"""Copies of a picture: test images leave training, two labels are none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdfm_ray.data.duplicates import DIGEST, content_hash, digest, resolve
from kdfm_ray.types import UNKNOWN

CLASSES = ("cat", "dog")


def found(rows, broken=()):
    """Rows of (picture, set, class or None) -> what ``resolve`` says."""
    digests = np.zeros((len(rows), DIGEST), np.uint8)
    digests[:, 3] = [ord(picture) for picture, _, _ in rows]
    labels = [UNKNOWN if name is None else CLASSES.index(name) for _, _, name in rows]
    usable = np.ones(len(rows), dtype=bool)
    usable[list(broken)] = False
    test = np.array([part == "test" for _, part, _ in rows], dtype=bool)
    labels = np.array(labels, dtype=np.int64)
    return resolve(digests, usable, labels, test, CLASSES, lambda i: f"file{i}")


@pytest.mark.parametrize(
    ("rows", "kept", "labels", "told"),
    [
        ([("a", "train", "cat"), ("b", "train", None)], [0, 1], [0, -1], []),
        ([("a", "train", None), ("a", "train", None)], [0, 1], [-1, -1], []),
        ([("a", "train", "cat"), ("a", "train", None)], [0], [0, -1], ["1 unlabeled images are"]),
        ([("a", "train", "cat"), ("a", "train", "cat")], [0], [0, 0], ["1 labeled images are cop"]),
        ([("a", "train", None), ("a", "test", "cat")], [1], [-1, 0], ["1 unlabeled images are te"]),
        ([("a", "train", "cat"), ("a", "test", "cat")], [1], [0, 0], ["1 labeled images are test"]),
        ([("a", "test", "cat"), ("a", "test", "cat")], [0, 1], [0, 0], []),
        (
            [("a", "train", "cat"), ("b", "train", "dog"), ("a", "train", "dog")],
            [0, 1],
            [-1, 1, 1],
            ["1 pictures are labeled with more", "file0 (cat) = file2 (dog)"],
        ),
        (
            [("a", "train", "cat"), ("a", "train", None), ("a", "test", "dog")],
            [2],
            [0, -1, 1],
            ["file0 (cat) = file2 (dog)", "1 labeled images are test", "1 unlabeled images are te"],
        ),
        (
            [("a", "test", "cat"), ("a", "test", "dog")],
            [0, 1],
            [0, 1],
            ["file0 (cat) = file1 (dog)"],
        ),
    ],
)
def test_each_rule(rows, kept, labels, told):
    result = found(rows)
    assert np.flatnonzero(result.keep).tolist() == kept
    assert result.labels.tolist() == labels
    text = "\n".join(result.warnings)
    assert all(part in text for part in told)
    assert bool(result.warnings) == bool(told) == bool(result.groups)


def test_what_could_not_be_read_equals_nothing():
    result = found([("a", "train", "cat"), ("a", "train", None)], broken=[0])
    assert result.keep.tolist() == [False, True]
    assert result.groups == []


def test_a_record_names_the_files_and_what_was_done():
    (group,) = found([("a", "train", "cat"), ("a", "test", "cat"), ("a", "train", None)]).groups
    assert group == {
        "paths": ["file0", "file1", "file2"],
        "sets": {"labeled": 1, "unlabeled": 1, "test": 1},
        "classes": ["cat"],
        "done": "left out of training",
    }


ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["train", "test"]), st.integers(0, 2)).map(
        lambda row: (row[0], row[1], [*CLASSES, CLASSES[0] if row[1] == "test" else None][row[2]])
    ),
    max_size=12,
)


@given(ROWS)
def test_no_picture_is_in_two_sets_or_has_two_classes(rows):
    result = found(rows)
    parts = {}
    for i in np.flatnonzero(result.keep):
        picture, part, _ = rows[i]
        name = "test" if part == "test" else "spare" if result.labels[i] == UNKNOWN else "labeled"
        parts.setdefault(picture, []).append(name)
    assert set(parts) == {picture for picture, _, _ in rows}, "one copy stays"
    for names in parts.values():
        assert len(set(names)) == 1
        assert names.count("labeled") <= 1


def test_a_digest_is_of_pixels_and_shape_is_fixed():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    same = np.asfortranarray(image)
    assert digest(image).tobytes() == digest(same).tobytes() != digest(image + 1).tobytes()


def test_the_content_hash_is_of_pixels_labels_order_and_classes():
    def of(values=(1, 2, 3), labels=(0, 1, UNKNOWN), classes=CLASSES, test=None):
        images = [np.full((8, 8, 3), value, np.uint8) for value in values]
        parts = {"train": (np.stack([digest(image) for image in images]), np.array(labels))}
        if test is not None:
            parts["test"] = np.stack([digest(images[test])]), np.array([0])
        return content_hash(parts, classes)

    assert of() == of()
    assert len(of()) == 64
    others = [
        of(values=(1, 2, 4)),
        of(labels=(0, 1, 1)),
        of(values=(2, 1, 3)),
        of(classes=("cat", "cow")),
        of(test=0),
        of(test=1),
    ]
    assert len({of(), *others}) == 7
