"""Every warning that a report may carry says what to try, in words that it can be known by."""

import re

import numpy as np
import pytest
from PIL import Image

from kdfm_ray.data.duplicates import COUNTED
from kdfm_ray.data.folder import list_folders
from kdfm_ray.data.split import make_split
from kdfm_ray.jobs.decode import _skip_warning
from kdfm_ray.jobs.evaluate import verdict_warnings
from kdfm_ray.jobs.label import _label_warnings
from kdfm_ray.trust.figures import cluster_warnings

# What stands after what happened.
ADVICE = re.compile(
    r"(: |; |, or )(add|give|label|look|lower|mend|move|nothing needs mending|raise|rename|save|"
    r"take|train|try)\b"
)


def of_folders(root):
    for name in ("labeled/cat/a", "labeled/dog/b", "labeled/loose", "test/cat/c", "spare/d"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(root / f"{name}.png")
    (root / "labeled/cat/notes.txt").write_text("no image")
    (root / "spare/again.png").symlink_to("../labeled/cat/a.png")
    return list_folders(root / "labeled", root / "spare", root / "test").warnings


def of_splits(root):
    few = np.array([0] * 30 + [1] * 3 + [2] * 30)
    names = ("a", "b", "c")
    how = {"num_labels": 15, "num_val": None, "split_seed": 0}
    found = make_split(few, 3, names, **how).warnings
    found += make_split(few, 3, names, **(how | {"num_labels": None, "num_val": 2})).warnings
    return found + make_split(few, 3, names, **(how | {"num_val": 0})).warnings


def of_evaluations(root):
    return verdict_warnings({"baseline": 0.9, "outer": 0.8, "inner": 0.7}, {})


def of_labels(root):
    return _label_warnings([99, 1], ["a", "b"]) + _label_warnings([50, 50, 0], ["a", "b", "c"])


def of_clusters(root):
    return cluster_warnings(np.array([98, 1, 1, 0]), np.array([25] * 4))


def of_copies(root):
    return [text for text in COUNTED.values() if text]


def of_skipped_files(root):
    skipped = [{"path": "a.png", "reason": "empty (0 bytes)"}]
    return _skip_warning(skipped, {0: "empty"}, np.array([0]), np.array([False]))


@pytest.mark.parametrize(
    ("made_by", "count"),
    [
        (of_folders, 4),
        (of_splits, 6),
        (of_evaluations, 2),
        (of_labels, 2),
        (of_clusters, 2),
        (of_copies, 5),
        (of_skipped_files, 1),
    ],
)
def test_what_to_try(made_by, count, tmp_path):
    found = list(dict.fromkeys(made_by(tmp_path)))
    assert len(found) >= count, found
    assert [text for text in found if not ADVICE.search(text)] == []
