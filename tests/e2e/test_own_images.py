"""Images of one's own, as people have them: what is skipped, what is left out, what is trained."""

import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from hostile import picture, write_bad, write_copies, write_good, write_others

import kdfm_ray as kdfm
from kdfm_ray.config import parse_config
from kdfm_ray.data.sources import shown
from kdfm_ray.jobs import decode as decode_module
from kdfm_ray.jobs.decode import choose_size, shard_size
from kdfm_ray.jobs.prepare import load_images, prepare
from kdfm_ray.jobs.session import open_session
from kdfm_ray.store import Store
from kdfm_ray.types import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]

TINY = {
    "scale.num_workers": 0,
    "train.steps": 4,
    "train.batch_size": 4,
    "train.precision": "fp32",
    "train.memory_format": "channels_last",
    "fixmatch.mu": 1,
    "select.tau_select": 0.0,
    "select.clusterer": "none",
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def data_of(root, **more):
    places = {name: str(root / name) for name in ("labeled", "unlabeled", "test")}
    return places | more


def prepared(store, data):
    """The data stage alone, in this process, and what it told of its progress."""
    events = []
    config = parse_config(
        {"data": data, "scale": {"num_workers": 0}, "model": {"name": "wrn_10_2"}}
    )
    with open_session(config.scale, events.append) as session:
        return prepare(session, Store(str(store)), config), events


@pytest.mark.slow
def test_hostile_files_end_in_a_model_and_an_exact_list(tmp_path, rng):
    write_good(tmp_path, rng)
    expected = write_bad(tmp_path, rng)
    others = write_others(tmp_path)
    write_copies(tmp_path, rng)
    run = kdfm.train(
        **{name: tmp_path / name for name in ("labeled", "unlabeled", "test")},
        model="wrn_10_2",
        out=tmp_path / "run",
        store=str(tmp_path / "store"),
        settings=TINY | {"data.max_skipped": 0.2},
        progress=False,
    )
    data = json.loads((run.path / "report.json").read_text())["data"]
    found = {item["path"].removeprefix(f"{tmp_path}/"): item["reason"] for item in data["skipped"]}
    by_name = {f"unlabeled/{name}" for name in others}
    assert set(found) == set(expected) | by_name
    assert len(expected) >= 15
    for path, reason in expected.items():
        assert reason in found[path], (path, found[path])
    assert all(found[path].startswith("not an image by its name") for path in by_name)
    assert data["non_images"] == {
        ".db": 1, ".json": 1, ".mp4": 1, ".part": 1, ".png": 1, ".txt": 1, "none": 1, "hidden": 2
    }  # fmt: skip

    groups = {tuple(group["sets"].items()): group for group in data["duplicates"]}
    leak = groups[("labeled", 1), ("unlabeled", 1), ("test", 1)]
    assert [os.path.relpath(path, tmp_path) for path in leak["paths"]] == [
        *("labeled/cat/leak.png", "test/cat/leak.png", "unlabeled/leak.bmp")
    ]
    assert data["duplicate_counts"] == {
        "two_classes": 1,
        "test_in_labeled": 1,
        "test_in_unlabeled": 1,
        "labeled_copies": 1,
        "labeled_in_unlabeled": 1,
        "unlabeled_copies": 3,  # twice, the link, and one that is PNG and TIFF
        "test_copies": 0,
    }
    assert data["test"] == 9
    assert data["labeled"] + data["val"] == 20 + 1, "own.png once; not leak.png, not both.png"
    assert data["unlabeled"] == data["labeled"] + 60 + 16 + 1 + 2, "one both.png, two twice.png"
    warnings = "\n".join(run.report["warnings"])
    for told in ("both.png (cat) =", "19 of", "1 labeled, 17 unlabeled, 1 test", "test images too"):
        assert told in warnings
    assert run.report["test_accuracy"]["inner"] is not None

    (listed,) = (tmp_path / "store" / "dataset").rglob("files.parquet")
    files = pq.read_table(listed).to_pylist()
    paths = {(row["part"], row["index"]): row["path"] for row in files}
    assert len(paths) == data["val"] + data["unlabeled"] + data["test"]
    assert shown(os.fsdecode(os.fsencode(tmp_path / "unlabeled") + b"/not \xff utf8.png")) in set(
        paths.values()
    )
    assert not list((tmp_path / "store" / "states").rglob("*.npz"))


def test_too_many_bad_files_stop_the_run_and_none_are_read_again(tmp_path, rng, monkeypatch):
    write_good(tmp_path, rng)
    write_bad(tmp_path, rng)
    with pytest.raises(UserError) as caught:
        prepared(tmp_path / "store", data_of(tmp_path))
    told = str(caught.value)
    assert "19 of 123 images (15.4%) cannot be used, more than data.max_skipped = 0.05" in told
    assert told.count("\n  ") == 5
    assert "raise data.max_skipped" in told

    def never(*_):
        raise AssertionError("decoded before")

    monkeypatch.setattr(decode_module, "decode", never)
    lenient, events = prepared(tmp_path / "store", data_of(tmp_path, max_skipped=0.2))
    assert len(lenient.facts["skipped"]) == 19
    assert sum(event.get("advance", 0) for event in events) == 123
    again, _ = prepared(tmp_path / "store", data_of(tmp_path, max_skipped=0.2))
    assert again.facts["reused"]
    with pytest.raises(UserError, match=r"max_skipped = 0.1 allows"):
        prepared(tmp_path / "store", data_of(tmp_path, max_skipped=0.1))


def test_a_changed_file_is_read_again_and_a_moved_folder_is_not(tmp_path, rng):
    write_good(tmp_path / "a", rng)
    first, _ = prepared(tmp_path / "store", data_of(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    second, _ = prepared(tmp_path / "store", data_of(tmp_path / "b"))
    assert second.facts["reused"]
    picture(rng, (0, 200, 0)).save(tmp_path / "b" / "unlabeled" / "grey.png")
    third, _ = prepared(tmp_path / "store", data_of(tmp_path / "b"))
    assert third.dataset.key != first.dataset.key
    assert not third.facts["reused"]


def test_the_content_hash_is_of_the_images_wherever_they_lie(tmp_path):
    found = []
    for name in ("here", "there"):
        write_good(tmp_path / name, np.random.default_rng(0))
        first, _ = prepared(tmp_path / f"{name} store", data_of(tmp_path / name))
        found.append(first.facts["content_hash"])
    assert found[0] == found[1]
    other = picture(np.random.default_rng(1), (200, 200, 0))
    other.save(tmp_path / "there" / "unlabeled" / "grey.png")
    changed, _ = prepared(tmp_path / "there store", data_of(tmp_path / "there"))
    assert changed.facts["content_hash"] not in found


def test_shards_give_what_one_pass_gives(tmp_path, rng, monkeypatch):
    """In any number; and each is as many files, so that any number of tasks can go on."""
    write_good(tmp_path, rng)
    data = data_of(tmp_path, image_size=16)
    whole, _ = prepared(tmp_path / "one", data)
    monkeypatch.setattr(decode_module, "shard_size", lambda count, size: 7)
    parts, _ = prepared(tmp_path / "two", data)
    for part in ("train", "test"):
        one, two = (load_images(each.dataset, part) for each in (whole, parts))
        np.testing.assert_array_equal(one.images, two.images)
        np.testing.assert_array_equal(one.labels, two.labels)
        assert one.images.flags.c_contiguous
    assert shard_size(100_000, 64) == 2048
    assert shard_size(100_000, 512) == 42
    assert shard_size(100, 64) == 64
    assert shard_size(1, 1024) == 10


def test_a_pass_that_was_cut_goes_on_with_the_shards_that_are_missing(tmp_path, rng, monkeypatch):
    write_good(tmp_path, rng)
    monkeypatch.setattr(decode_module, "shard_size", lambda count, size: 30)
    real, seen = decode_module.decode, []

    def dies(source, size):
        seen.append(source)
        if len(seen) > 70:
            raise KeyboardInterrupt
        return real(source, size)

    with monkeypatch.context() as patch:
        patch.setattr(decode_module, "decode", dies)
        with pytest.raises(KeyboardInterrupt):
            prepared(tmp_path / "store", data_of(tmp_path))
    (damaged,) = (tmp_path / "store" / "states").rglob("part-000000.npz")
    damaged.write_bytes(damaged.read_bytes()[:5000])
    before, seen[:] = len(seen), []
    monkeypatch.setattr(decode_module, "decode", lambda *args: (seen.append(args), real(*args))[1])
    done, _ = prepared(tmp_path / "store", data_of(tmp_path))
    assert before > 70
    assert len(seen) == done.facts["num_files"] - 30, "the second shard was whole"


def test_the_image_size_follows_the_images_within_limits(tmp_path, rng):
    assert choose_size([]) == 64
    assert choose_size([500] * 9) == 64
    assert choose_size([28, 28, 400]) == 32
    assert choose_size([50, 44, 46]) == 48
    assert choose_size([8]) == 32
    write_good(tmp_path, rng)  # 40 pixels high
    found, _ = prepared(tmp_path / "store", data_of(tmp_path))
    assert found.facts["image_shape"] == [40, 40, 3]
    same, _ = prepared(tmp_path / "store", data_of(tmp_path, image_size=40))
    assert same.dataset.key == found.dataset.key


def test_a_set_of_which_nothing_is_left_is_told(tmp_path, rng):
    write_good(tmp_path, rng)
    for name in ("cat", "dog"):
        for file in (tmp_path / "test" / name).iterdir():
            file.write_bytes(b"x")
    with pytest.raises(UserError, match="none of the test images can be read"):
        prepared(tmp_path / "store", data_of(tmp_path, max_skipped=1.0))
    for file in (tmp_path / "labeled" / "dog").iterdir():
        file.write_bytes(b"x")
    shutil.rmtree(tmp_path / "test")
    data = data_of(tmp_path, max_skipped=1.0) | {"test": None}
    with pytest.raises(UserError, match="no labeled image of class dog"):
        prepared(tmp_path / "store", data)


def test_tables_and_uris_train_too(tmp_path, rng):
    import fsspec

    write_good(tmp_path, rng)
    rows = [
        f"labeled/{kind}/{kind}{i}.png,{name}"
        for kind, name in (("cat", "Katze"), ("dog", "Hund"))
        for i in range(10)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows, "labeled/no.png,Hund"]))
    files = fsspec.filesystem("memory")
    for i in range(30):
        files.pipe_file(f"/spare/{i}.png", (tmp_path / f"unlabeled/x y/cat{i}.png").read_bytes())
    data = {"labeled": str(tmp_path / "labels.csv"), "unlabeled": "memory://spare"}
    found, _ = prepared(tmp_path / "store", data)
    files.rm("/spare", recursive=True)
    assert found.facts["classes"] == ["Hund", "Katze"]
    assert found.facts["num_train"] == 50
    assert found.facts["skipped"] == [
        {"path": str(tmp_path / "labeled/no.png"), "reason": "no such file (a broken link?)"}
    ]
