"""Splits: what validates never trains, labels are balanced, and a seed means one split for good."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfm_ray.data.split import Split, make_split
from kdfm_ray.types import UNKNOWN, UserError


def labels_of(*counts, unknown=0):
    """Labels with so many images of each class, in a mixed but fixed order."""
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.concatenate([labels, np.full(unknown, UNKNOWN)]).astype(np.int64)
    return np.random.default_rng(0).permutation(labels)


def split_of(labels, k, num_labels=None, num_val=0, seed=0, classes=None):
    return make_split(labels, k, classes, num_labels=num_labels, num_val=num_val, split_seed=seed)


def counts_of(labels, index, k):
    return np.bincount(labels[index], minlength=k).tolist()


@st.composite
def problems(draw):
    """Labels, K, num_labels, num_val that can be split."""
    counts = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    labels = labels_of(*counts, unknown=draw(st.integers(0, 20)))
    num_labels = draw(st.integers(len(counts), sum(counts)))
    num_val = draw(st.integers(0, sum(counts) - num_labels))
    return labels, len(counts), num_labels, num_val


@given(problem=problems(), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=150)
def test_every_split_keeps_the_rules(problem, seed):
    labels, k, num_labels, num_val = problem
    split = split_of(labels, k, num_labels, num_val, seed)
    labeled, val = set(split.labeled_index), set(split.val_index)
    unlabeled = set(split.unlabeled_index)
    assert len(labeled) == num_labels
    assert len(val) == num_val
    assert not val & unlabeled
    assert labeled <= unlabeled
    assert val | unlabeled == set(range(len(labels)))
    assert (labels[split.val_index] != UNKNOWN).all()
    given_, val_given = (
        counts_of(labels, split.labeled_index, k),
        counts_of(labels, split.val_index, k),
    )
    assert min(given_) >= 1
    counts = np.bincount(labels[labels >= 0], minlength=k)
    # As even as can be: who has less than another (by more than one) has given all it has.
    for c in range(k):
        if given_[c] < max(given_) - 1:
            assert given_[c] == counts[c] - val_given[c]
    assert split_of(labels, k, num_labels, num_val, seed).hash() == split.hash()


@given(problem=problems(), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_smaller_labeled_sets_lie_in_larger_ones(problem, seed):
    labels, k, num_labels, num_val = problem
    large = split_of(labels, k, num_labels, num_val, seed)
    small = split_of(labels, k, max(k, num_labels // 2), num_val, seed)
    assert set(small.labeled_index) <= set(large.labeled_index)
    np.testing.assert_array_equal(small.val_index, large.val_index)


@pytest.mark.parametrize(("num_labels", "floor"), [(40, 4), (43, 4), (10, 1), (19, 1)])
def test_labels_are_class_balanced(num_labels, floor):
    labels = labels_of(*[100] * 10)
    split = split_of(labels, 10, num_labels, num_val=100)
    counts = counts_of(labels, split.labeled_index, 10)
    assert sorted(counts) == sorted(
        [floor] * (10 - num_labels % 10) + [floor + 1] * (num_labels % 10)
    )
    assert counts_of(labels, split.val_index, 10) == [10] * 10
    assert split.warnings == ()


def test_the_seed_says_who_gets_the_remainder():
    labels = labels_of(*[20] * 5)
    who = {
        tuple(counts_of(labels, split_of(labels, 5, 7, 0, seed).labeled_index, 5))
        for seed in range(20)
    }
    assert len(who) > 3


def test_seeds_give_other_splits():
    labels = labels_of(50, 50)
    hashes = {split_of(labels, 2, 10, 10, seed).hash() for seed in range(10)}
    assert len(hashes) == 10


def test_validation_is_stratified():
    labels = labels_of(600, 300, 100)
    split = split_of(labels, 3, 30, num_val=50)
    assert counts_of(labels, split.val_index, 3) == [30, 15, 5]


def test_validation_leaves_each_class_an_image():
    labels = labels_of(1, 2, 40)
    split = split_of(labels, 3, None, num_val=40)
    assert counts_of(labels, split.val_index, 3) == [0, 1, 39]
    assert counts_of(labels, split.labeled_index, 3) == [1, 1, 1]
    assert any("no validation image of class 0:" in text for text in split.warnings)


def test_a_short_class_gives_all_and_others_fill_up():
    labels = labels_of(100, 3, 100)
    split = split_of(labels, 3, 30, 0, classes=["cat", "lynx", "dog"])
    counts = counts_of(labels, split.labeled_index, 3)
    assert counts[1] == 3
    assert sorted(counts) == [3, 13, 14]
    assert any("lynx (3)" in text and "not class-balanced" in text for text in split.warnings)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([6000] * 10, 5000),  # Fashion-MNIST: 5,000 of 60,000
        ([50] * 10, 50),  # a tenth
        ([10, 10], 2),  # twenty images in two folders
        ([4] * 5, 4),  # one a class would be more than a fifth
        ([30, 30, 30, 10], 10),
        ([1, 1], 0),  # nothing to spare
        ([2, 2, 2, 2, 2], 2),
        ([1] * 10, 0),
    ],
)
def test_default_size_of_validation(counts, expected):
    labels = labels_of(*counts)
    split = make_split(labels, len(counts), num_labels=None, num_val=None, split_seed=0)
    assert len(split.val_index) == expected
    assert len(split.labeled_index) == sum(counts) - expected
    assert set(range(len(counts))) == set(labels[split.labeled_index])
    assert bool(split.warnings) == (expected < 50)


def test_unknown_labels_are_unlabeled_only():
    labels = labels_of(10, 10, unknown=30)
    split = split_of(labels, 2, None, num_val=4)
    assert len(split.labeled_index) == 16
    assert len(split.unlabeled_index) == 46


NAMES = ["cat", "dog", "owl"]


@pytest.mark.parametrize(
    ("counts", "arguments", "message"),
    [
        ([5, 0, 5], {}, "no labeled image of class dog"),
        ([5, 5, 5], {"num_labels": 2}, "num_labels = 2 .*3 classes; allowed: 3 to 15"),
        ([5, 5, 5], {"num_labels": 16}, "num_labels = 16, but only 15 .*allowed: 3 to 15"),
        ([5, 5, 5], {"num_labels": 16, "num_val": 4}, "allowed: 3 to 11"),
        (
            [5, 5, 5],
            {"num_labels": 12, "num_val": 4},
            "need 16 images .* there are 15. Set num_val to at most 3, or num_labels to at most 11",
        ),
        ([5, 5, 5], {"num_val": 13}, r"Set num_val to at most 12\.$"),
        ([5, 5, 5], {"num_labels": 6, "num_val": 99}, r"Set num_val to at most 9\.$"),
        ([5, 5, 5], {"num_val": -1}, "num_val = -1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(counts, arguments, message):
    with pytest.raises(UserError, match=message):
        split_of(labels_of(*counts), 3, classes=NAMES, **arguments)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match=r"-1\.\.1"):
        split_of(np.array([0, 1, 2]), 2)
    with pytest.raises(ValueError, match="3 class names"):
        split_of(labels_of(4, 4), 2, classes=NAMES)


def test_split_never_changes_silently():
    """Results are told by split_seed; were this hash another, they could not be had again."""
    labels = np.arange(600, dtype=np.int64) * 7 % 11 % 10
    labels[500:] = UNKNOWN
    split = make_split(labels, 10, num_labels=43, num_val=None, split_seed=7)
    assert split.labeled_index[:5].tolist() == GOLDEN_FIRST
    assert split.hash() == GOLDEN_HASH


GOLDEN_FIRST = [0, 2, 26, 35, 38]
GOLDEN_HASH = "2b0e5ac35dd2e7ab35cda535c34beb1d5c0fe92b655eb022d3b43d8745c0a4ee"


def test_saved_and_read_again(tmp_path):
    split = split_of(labels_of(9, 2, 9), 3, 12, num_val=4)
    split.save(tmp_path / "split.npz")
    again = Split.load(tmp_path / "split.npz")
    assert again.hash() == split.hash()
    assert again.warnings == split.warnings != ()
    for name in ("labeled_index", "unlabeled_index", "val_index"):
        np.testing.assert_array_equal(getattr(again, name), getattr(split, name))
        assert getattr(again, name).dtype == np.int64
    assert [path.name for path in tmp_path.iterdir()] == ["split.npz"]


def test_warnings_are_not_hashed_but_each_array_is():
    a, b, c = (np.array(x, dtype=np.int64) for x in ([0, 2], [0, 1, 2], [3]))
    split = Split(a, b, c)
    assert Split(a, b, c, warnings=("x",)).hash() == split.hash()
    others = [Split(a[:1], b, c), Split(a, np.array([0, 2]), c), Split(a, b, c[:0])]
    assert len({split.hash(), *(other.hash() for other in others)}) == 4


def test_bad_split_files_are_named(tmp_path):
    path = tmp_path / "split.npz"
    with pytest.raises(UserError, match=re.escape(f"no split file {path}")):
        Split.load(path)
    path.write_text("not a zip")
    with pytest.raises(UserError, match="cannot be read as a split"):
        Split.load(path)
    np.savez(path, labeled_index=np.arange(3))
    with pytest.raises(UserError, match="cannot be read as a split"):
        Split.load(path)
    good = split_of(labels_of(9, 9), 2, 4, num_val=4)
    good.save(path)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["labeled_index"] = arrays["unlabeled_index"][:4]
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="was changed"):
        Split.load(path)


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "val", "message"),
    [
        ([0], [0, 1], [1], "validation image is also"),
        ([2], [0, 1], [], "not in unlabeled"),
        ([0], [1, 0], [], "sorted"),
        ([0], [0, 0], [], "distinct"),
        ([0], [0], [-1], "negative"),
    ],
)
def test_impossible_splits_are_refused(labeled, unlabeled, val, message):
    with pytest.raises(ValueError, match=message):
        Split(*(np.array(x, dtype=np.int64) for x in (labeled, unlabeled, val)))


def test_indices_must_be_int64():
    # TypeError where annotations are checked, as in tests.
    with pytest.raises((ValueError, TypeError), match=r"(?i)int64"):
        Split(*[np.array([0], dtype=np.int32)] * 3)
