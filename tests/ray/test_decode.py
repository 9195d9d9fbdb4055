"""Own images decoded by tasks of a real local Ray: as in one process, and whatever dies."""

import os

import numpy as np
import pytest
from PIL import Image

from kdfm_ray.config import parse_config
from kdfm_ray.jobs import decode as decode_module
from kdfm_ray.jobs.decode import DecodeTask, decode_shard
from kdfm_ray.jobs.prepare import load_images, prepare
from kdfm_ray.jobs.session import open_session, prepare_environment
from kdfm_ray.store import Store
from kdfm_ray.training.runtime import ignore
from kdfm_ray.types import UserError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Ray's own: sockets and subprocesses that it leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def make_config(root, workers, **data):
    places = {name: str(root / name) for name in ("labeled", "unlabeled")}
    scale = {"num_workers": workers, "cpus_per_worker": 1}
    model = {"name": "wrn_10_2"}
    return parse_config({"data": places | data, "scale": scale, "model": model})


@pytest.fixture(scope="module")
def cluster():
    prepare_environment(local=True)
    import ray

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(address="local", num_cpus=2, **quiet)
    config = parse_config({"data": {"name": "digits"}, "scale": {"cpus_per_worker": 1}})
    with open_session(config.scale, ignore) as session:
        yield session
    ray.shutdown()


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for kind, count in (("labeled/cat", 10), ("labeled/dog", 10), ("unlabeled", 200)):
        (tmp_path / kind).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{i:03}.png")
    (tmp_path / "unlabeled" / "bad.png").write_bytes(b"x")
    return tmp_path


def test_tasks_give_what_one_process_gives(cluster, images):
    config = make_config(images, workers=0, image_size=8)
    with open_session(config.scale, ignore) as session:
        alone = prepare(session, Store(str(images / "one")), config)
    again = prepare(cluster, Store(str(images / "two")), make_config(images, 1, image_size=8))
    assert again.dataset.key == alone.dataset.key
    assert [item["path"] for item in again.facts["skipped"]] == [
        str(images / "unlabeled" / "bad.png")
    ]
    one, two = (load_images(each.dataset, "train") for each in (alone, again))
    np.testing.assert_array_equal(one.images, two.images)


def test_a_task_that_dies_is_run_again(cluster, images, monkeypatch):
    def dies_once(task, number, emit):
        mark = f"{task.store}/died"
        if number == 1 and not os.path.exists(mark):
            open(mark, "w").close()
            os._exit(1)
        decode_shard(task, number, emit)

    monkeypatch.setattr(decode_module, "decode_shard", dies_once)
    prepared = prepare(cluster, Store(str(images / "store")), make_config(images, 1, image_size=8))
    assert (images / "store" / "died").exists()
    assert prepared.facts["num_train"] == 220


def test_the_list_of_what_was_refused_comes_from_the_task_to_the_driver(cluster, images):
    config = make_config(images, 1, image_size=8, max_skipped=0.0)
    store = Store(str(images / "store"))
    with pytest.raises(UserError, match=r"more than data\.max_skipped") as caught:
        prepare(cluster, store, config)
    assert caught.value.facts["classes"] == ["cat", "dog"]
    (skipped,) = caught.value.facts["skipped"]
    assert skipped["path"] == str(images / "unlabeled" / "bad.png")


def test_a_folder_that_a_node_does_not_see_is_told(cluster, tmp_path):
    task = DecodeTask(str(tmp_path), "key", 1, 1, 8, 99, 1, {"roots": ["/only/on/the/head"]})
    with pytest.raises(UserError, match=r"/only/on/the/head is not there on the node"):
        list(cluster.each(decode_shard, [(task, 0, ignore)]))
