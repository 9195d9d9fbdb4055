"""Images worth labeling next: uncertain, and no two alike."""

import numpy as np

from kdfm_ray.predictions.review import POOL, Pool


def clusters(n, k, seed=0):
    """Points around k directions that are far apart, and the direction of each."""
    rng = np.random.default_rng(seed)
    group = np.arange(n) % k
    points = np.eye(k, 8)[group] * 5 + rng.normal(0, 0.05, (n, 8))
    return points.astype(np.float32), group


def test_the_least_certain_of_each_cluster():
    points, group = clusters(40, 4)
    margin = np.linspace(0.9, 0.1, 40).astype(np.float32)
    pool = Pool(4)
    for part in np.split(np.arange(40), 5):
        pool.add(part, margin[part], points[part])
    index, cluster = pool.choose()
    assert sorted(group[index]) == [0, 1, 2, 3]
    assert len(set(cluster)) == 4
    assert index.tolist() == [39, 38, 37, 36], "least certain first"


def test_certain_images_are_not_asked_for():
    points, _ = clusters(1_000, 4)
    margin = np.full(1_000, 0.9, np.float32)
    margin[100:140] = 0.1
    pool = Pool(4)
    pool.add(np.arange(1_000), margin, points)
    assert len(pool.index) == POOL * 4
    index, _ = pool.choose()
    assert set(index) <= set(range(100, 140))


def test_copies_of_one_image_do_not_leave_places_empty():
    pool = Pool(5)
    pool.add(np.arange(20), np.arange(20, dtype=np.float32), np.ones((20, 3), np.float32))
    index, cluster = pool.choose()
    assert sorted(index) == [0, 1, 2, 3, 4]
    assert len(cluster) == 5


def test_fewer_images_than_wanted():
    pool = Pool(9)
    assert pool.choose()[0].tolist() == []
    pool.add(np.arange(3), np.array([0.3, 0.1, 0.2], np.float32), np.eye(3, dtype=np.float32))
    assert pool.choose()[0].tolist() == [1, 2, 0]
