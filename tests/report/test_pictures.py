"""What the report shows of the images, from artifacts that were made by hand."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdfm_ray.data.split import Split
from kdfm_ray.jobs import pictures
from kdfm_ray.jobs.pictures import PicturesTask, flat_map, thumbnail
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.store import Store

COUNT, CLASSES = 100, 4  # images of the training set, the last ten of them for validation
UNLABELED = np.arange(90)


@pytest.fixture
def store(tmp_path):
    """Image i is of class i % 4, and predicted so but for every tenth; the first 8 are labeled."""
    made, random = Store(str(tmp_path)), np.random.default_rng(0)
    truth = np.arange(COUNT) % CLASSES
    with made.writing("dataset", "d") as draft:
        np.save(draft.path / "train_images.npy", random.integers(0, 256, (COUNT, 60, 60, 1), "u1"))
        np.save(draft.path / "train_labels.npy", truth)
        draft.write_record({"classes": ["a", "b", "c", "d"]})
    with made.writing("split", "s") as draft:
        Split(np.arange(8), UNLABELED, np.arange(90, COUNT)).save(draft.path / "split.npz")
        draft.write_record({})
    predicted = truth[:90].copy()
    predicted[::10] = (predicted[::10] + 1) % CLASSES
    confidence = np.where(UNLABELED < 50, 0.9, 0.5).astype(np.float32)
    embedding = random.normal(size=(90, 6)).astype(np.float32)
    with made.writing("labels", "l") as draft:
        (draft.path / "parts").mkdir()
        table = pa.table(
            {
                "index": UNLABELED,
                "pseudo_label": predicted,
                "confidence": confidence,
                "embedding": list(embedding),
            }
        )
        pq.write_table(table, draft.path / "parts" / "0.parquet")
        draft.write_record({"count": 90})
    with made.writing("trusted", "t") as draft:
        np.savez(draft.path / "trusted.npz", trusted_index=np.arange(8, 40))
        draft.write_record({})
    with made.writing("inner", "i") as draft:
        draft.write_record({})
    return made


def look(store, trusted="t", inner="i"):
    task = PicturesTask(
        store=store.root,
        dataset="d",
        split="s",
        labels="l",
        trusted=trusted,
        inner=inner,
        key="p",
        tau_select=0.8,
        tau_inner=0.95,
        seed=0,
        numerics=Numerics(),
        batch_size=8,
        use_gpu=False,
        threads=1,
    )
    pictures._make(task, lambda event: None)
    artifact = store.get("pictures", "p")
    return json.loads((artifact.path / pictures.FILE).read_text()), artifact.record()


def test_each_image_has_one_fate_and_labeled_ones_none_of_the_rest(store, monkeypatch, read_png):
    def sure_of_the_truth(self, inner, index):
        return index % CLASSES, np.where(index < 30, 0.99, 0.5)

    monkeypatch.setattr(pictures._Looking, "_predict", sure_of_the_truth)
    found, record = look(store)
    counts = {name: group["count"] for name, group in found["examples"].items()}
    assert counts == {
        "trusted": 32,
        "unsure": 40,
        "disagreeing": 10,
        "confident": 0,
        "overridden": 2,  # 10 and 20 are predicted wrongly, and below 30
    }
    assert found["labeled_per_class"] == [2, 2, 2, 2]
    assert record["overridden"] == {
        "looked_at": 32,
        "count": 2,
        "trusted_right": 0.0,
        "own_right": 1.0,
    }
    shown = found["examples"]["overridden"]["images"]
    assert [each["own"] for each in shown] == [each["truth"] for each in shown] == [2, 0]
    assert len(found["examples"]["trusted"]["images"]) == pictures.EXAMPLES
    assert read_png(shown[0]["png"]).shape == (48, 48)
    assert len(found["map"]["x"]) == 90
    assert found["map"]["fate"].count("labeled") == 8


def test_without_a_trusted_subset_there_are_still_pictures(store):
    found, record = look(store, trusted=None, inner=None)
    assert record["overridden"] is None
    assert found["examples"]["confident"]["count"] == 42
    assert found["examples"]["unsure"]["count"] == 40
    assert "overridden" not in found["examples"]


@pytest.mark.parametrize(
    ("count", "size", "method"), [(1, 1, "PCA"), (3, 5, "PCA"), (70, 3, "t-SNE")]
)
def test_a_map_lies_in_the_unit_square_and_is_the_same_again(count, size, method):
    rows = np.random.default_rng(0).normal(size=(count, size)).astype(np.float32)
    place, how = flat_map(rows, seed=1)
    assert how == method
    assert place.shape == (count, 2)
    assert (place >= -1e-6).all()
    assert (place <= 1 + 1e-6).all()
    np.testing.assert_array_equal(place, flat_map(rows, seed=1)[0])


@pytest.mark.parametrize("value", [0.0, 3.7, 1e-30, 1e20])
@pytest.mark.parametrize("others", [0, 1, 35])
def test_equal_embeddings_have_a_map(value, others):
    """All of them, all but one, half of them."""
    rows = np.full((70, 4), value, np.float32)
    rows[:others] *= np.arange(2, 2 + others, dtype=np.float32)[:, None]
    place, _ = flat_map(rows, seed=0)
    assert np.isfinite(place).all()


def test_a_thumbnail_keeps_a_small_image_as_it_is(read_png):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    np.testing.assert_array_equal(read_png(thumbnail(image)), image)
