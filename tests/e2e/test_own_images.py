"""Images of one's own, as people have them: what is skipped, what is left out, what is trained."""

import html
import json
import os
import shlex
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from hostile import REDS, picture, write_bad, write_copies, write_good, write_others

import kdfm_ray as kdfm
from kdfm_ray import resolve as resolve_module
from kdfm_ray.cli import main
from kdfm_ray.config import Config, parse_config
from kdfm_ray.data.sources import shown
from kdfm_ray.jobs import decode as decode_module
from kdfm_ray.jobs import prepare as prepare_module
from kdfm_ray.jobs import train as train_module
from kdfm_ray.jobs.decode import choose_size, shard_size
from kdfm_ray.jobs.prepare import load_images, prepare
from kdfm_ray.jobs.session import open_session
from kdfm_ray.models.pretrained import size_limits
from kdfm_ray.store import Store
from kdfm_ray.sweeps.plan import Planner, filled
from kdfm_ray.sweeps.space import Asha, Sweep, grid, make_trials, unranked
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
    arguments = {
        **{name: tmp_path / name for name in ("labeled", "unlabeled", "test")},
        "model": "wrn_10_2",
        "out": tmp_path / "run",
        "store": str(tmp_path / "store"),
        "progress": False,
    }
    by_name = {f"unlabeled/{name}" for name in others}

    def check_list():
        data = json.loads((tmp_path / "run" / "report.json").read_text())["data"]
        skipped = {
            item["path"].removeprefix(f"{tmp_path}/"): item["reason"] for item in data["skipped"]
        }
        assert set(skipped) == set(expected) | by_name
        for path, reason in expected.items():
            assert reason in skipped[path], (path, skipped[path])
        return data, skipped

    # Above the limit: nothing is trained, but the whole list is left.
    with pytest.raises(UserError, match=r"more than data\.max_skipped = 0\.05 allows"):
        kdfm.train(**arguments, settings=TINY | {"train.steps": 5})
    failed = json.loads((tmp_path / "run" / "report.json").read_text())
    assert failed["finished"] is False
    assert "cannot be used" in failed["failed"]
    data, found = check_list()
    assert (data["name"], data["files"], data["labeled"]) == ("folders", 133, None)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "This run ended early." in page
    assert all(html.escape(item["path"]) in page for item in data["skipped"])

    # The same folder takes a mended command, with any settings.
    run = kdfm.train(**arguments, settings=TINY | {"data.max_skipped": 0.2})
    assert len(expected) >= 15
    data, found = check_list()
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

    # The report of a finished run is not replaced by that of one that fails.
    with pytest.raises(UserError, match=r"more than data\.max_skipped"):
        kdfm.train(**arguments, settings=TINY)
    assert kdfm.load(run.path).report == run.report


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


def test_a_run_whose_images_cannot_be_divided_says_what_it_found(tmp_path, rng):
    for kind in ("cat", "dog"):
        (tmp_path / "labeled" / kind).mkdir(parents=True)
        picture(rng, (200, 0, 0)).save(tmp_path / "labeled" / kind / f"{kind}.png")
    (tmp_path / "labeled" / "cat" / "empty.png").touch()
    with pytest.raises(UserError, match="num_labels"):
        kdfm.train(
            labeled=tmp_path / "labeled",
            model="wrn_10_2",
            out=tmp_path / "run",
            store=str(tmp_path / "store"),
            settings=TINY | {"data.max_skipped": 0.5, "data.num_labels": 900},
            progress=False,
        )
    data = json.loads((tmp_path / "run" / "report.json").read_text())["data"]
    assert data["skipped"] == [
        {"path": str(tmp_path / "labeled" / "cat" / "empty.png"), "reason": "empty (0 bytes)"}
    ]
    assert data["classes"] == ["cat", "dog"]


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
    one, two = (pq.read_table(each.dataset.path / "files.parquet") for each in (whole, parts))
    assert one.equals(two)
    assert shard_size(100_000, 64) == 2048
    assert shard_size(100_000, 512) == 42
    assert shard_size(100, 64) == 64
    assert shard_size(1, 1024) == 10


def test_a_pass_that_was_cut_goes_on_with_the_shards_that_are_missing(tmp_path, rng, monkeypatch):
    write_good(tmp_path, rng)
    monkeypatch.setattr(decode_module, "shard_size", lambda count, size: 30)
    real, seen = decode_module.decode, []

    def dies(source, size, max_pixels):
        seen.append(source)
        if len(seen) > 70:
            raise KeyboardInterrupt
        return real(source, size, max_pixels)

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
    def size(sides, name="wrn_28_2", pretrained=True, gpu=False):
        return choose_size(sides, size_limits(name, pretrained=pretrained, gpu=gpu))[0]

    assert size([]) == 64
    assert size([500] * 9) == 64
    assert size([28, 28, 400]) == 32
    assert size([50, 44, 46]) == 48
    assert size([8]) == 32
    assert size([500], "efficientnet_b0", gpu=True) == 224
    assert size([500], "efficientnet_b0") == 96, "on CPUs"
    assert size([150], "efficientnet_b0", gpu=True) == 160, "a multiple of 32"
    assert size([500], "efficientnet_b0", pretrained=False, gpu=True) == 64
    assert size([40], "vit_tiny_patch16_224") == 224, "its position embeddings are of that size"
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


def test_a_link_from_test_to_labeled_is_left_out_of_training_and_reported(tmp_path, rng):
    write_good(tmp_path, rng)
    (tmp_path / "test/cat/link.png").symlink_to(tmp_path / "labeled/cat/cat0.png")
    found, _ = prepared(tmp_path / "store", data_of(tmp_path))
    facts = found.facts
    assert facts["duplicate_counts"]["test_in_labeled"] == 1
    (group,) = [each for each in facts["duplicates"] if each["sets"].get("test")]
    assert group["done"] == "left out of training"
    assert [os.path.relpath(path, tmp_path) for path in group["paths"]] == [
        *("labeled/cat/cat0.png", "test/cat/link.png")
    ]
    labeled = facts["labeled_per_class"], facts["val_per_class"]
    assert [sum(counts) for counts in zip(*labeled, strict=True)] == [9, 10]
    assert any("1 labeled images are test images too" in text for text in facts["data_warnings"])


def test_what_may_not_be_read_behind_a_uri_is_not_called_missing(tmp_path, rng, monkeypatch):
    """Of a file system that tells one from the other, such as ``local://``."""
    write_good(tmp_path, rng)
    real = decode_module.sources.content
    refusals = {
        "cat7.png": PermissionError(13, "Permission denied"),
        "cat8.png": FileNotFoundError(2, "No such file"),
    }

    def refuses(place):
        if "unlabeled" in place and os.path.basename(place) in refusals:
            raise refusals[os.path.basename(place)]
        return real(place)

    monkeypatch.setattr(decode_module.sources, "content", refuses)
    found, _ = prepared(tmp_path / "store", data_of(tmp_path))
    reasons = {os.path.basename(item["path"]): item["reason"] for item in found.facts["skipped"]}
    assert reasons == {
        "cat7.png": "it may not be read (permission denied)",
        "cat8.png": "no such file",
    }


def test_images_of_too_many_pixels_are_skipped_with_the_reason(tmp_path, rng):
    write_good(tmp_path, rng)  # of 50 x 40 pixels
    picture(rng, REDS, size=(70, 60)).save(tmp_path / "unlabeled" / "large.png")
    found, _ = prepared(tmp_path / "store", data_of(tmp_path, max_pixels=3000))
    (skipped,) = found.facts["skipped"]
    assert skipped["path"] == str(tmp_path / "unlabeled" / "large.png")
    assert skipped["reason"] == "too large: 70 x 60 pixels, more than data.max_pixels = 3,000"
    usual, _ = prepared(tmp_path / "store", data_of(tmp_path))
    assert not usual.facts["skipped"]
    assert usual.dataset.key != found.dataset.key


@pytest.fixture
def weights(monkeypatch):
    """What is said of pretrained weights, and how often it was asked; ``yes`` reads none."""
    asked, answer = [], ["no connection"]
    real = prepare_module.make_network

    def fetch(name):
        asked.append(name)
        return answer[0]

    def make(config, facts, *, seed, pretrained):
        started = "no" if pretrained == "yes" else pretrained
        return real(config, facts, seed=seed, pretrained=started)

    monkeypatch.setattr(prepare_module, "_fetch_weights", fetch)
    monkeypatch.setattr(prepare_module, "make_network", make)
    monkeypatch.setattr(train_module, "make_network", make)
    return asked, answer


OPEN = {name: value for name, value in TINY.items() if name != "train.steps"} | {
    "model.name": "wrn_10_2",
    "baseline": False,
}


@pytest.mark.slow
def test_a_run_without_flags_keeps_what_it_was_begun_with(tmp_path, rng, monkeypatch, weights):
    """Cut after its first updates, and gone on with where weights can be had no more."""
    asked, answer = weights
    answer[0] = ""
    monkeypatch.setattr(resolve_module, "STEPS", (6, 9))
    write_good(tmp_path, rng)
    places = {name: tmp_path / name for name in ("labeled", "unlabeled")}
    args = places | {"out": tmp_path / "run", "store": str(tmp_path / "store"), "settings": OPEN}
    with monkeypatch.context() as patch:
        patch.setattr("kdfm_ray.pipeline._Stages.label", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            kdfm.train(**args, progress=False)
    begun = json.loads((tmp_path / "run" / "begun.json").read_text())
    assert begun["resolved"] == {
        "model.pretrained": "yes",
        "data.image_size": 40,
        "train.steps": 9,
        "train.learning_rate": 0.01,
        "train.eval_every": 10,
        "train.log_every": 10,
        "select.align_strength": 0.5,
    }
    given = Config.from_yaml(tmp_path / "run" / "config.yaml")
    assert sorted(resolve_module.open_fields(given)) == sorted(begun["resolved"])

    answer[0] = "no connection"
    run = kdfm.train(**args, progress=False)
    assert asked == ["wrn_10_2"], "not asked again"
    report = run.report
    assert {each["field"]: each["value"] for each in report["resolved"]} == begun["resolved"]
    assert "outer" in report["reused"]
    assert report["config_hash"] == given.hash()
    assert "--train.steps 9" in report["resolved_command"]
    assert "--train.steps" not in report["command"]
    assert report["data"]["image_shape"] == [40, 40, 3]
    counts = report["data"]["labeled_per_class"], report["data"]["val_per_class"]
    assert [sum(each) for each in counts] == [report["data"]["labeled"], report["data"]["val"]]

    again = shlex.split(report["resolved_command"])[2:]
    again[again.index("--out") + 1] = str(tmp_path / "again")
    assert main(["train", *again]) == 0
    repeated = json.loads((tmp_path / "again" / "report.json").read_text())
    assert repeated["keys"] == report["keys"], "every network is the same"
    assert repeated["resolved"] == []


def test_weights_that_cannot_be_had_are_told_once_and_in_the_report(tmp_path, rng, weights):
    write_good(tmp_path, rng)
    events = []
    config = parse_config({"data": data_of(tmp_path), "scale": {"num_workers": 0}})
    with open_session(config.scale, events.append) as session:
        found = prepare(session, Store(str(tmp_path / "store")), config)
        assert found.config.model.pretrained == "no"
        assert found.config.train.learning_rate == 0.03
        assert found.found.image_size == 32
        for told in ("(no connection)", "--model.pretrained FILE", "lite0.py", "connect"):
            assert told in found.found.warning
        weights[1][0] = None  # timm has none: nothing to mend
        found = prepare(session, Store(str(tmp_path / "store")), config)
    assert found.config.model.pretrained == "no"
    assert found.found.warning == ""


def test_trials_over_own_images_are_filled_by_their_own_settings(tmp_path, rng, weights):
    write_good(tmp_path, rng)
    base = parse_config(
        {
            "data": data_of(tmp_path),
            "model": {"name": "wrn_10_2"},
            "train": {"precision": "fp32", "memory_format": "channels_last"},
            "scale": {"num_workers": 0},
        }
    )
    sweep = Sweep(
        name="own",
        base=base,
        space={"train.optimizer": grid("sgd", "adamw"), "select.tau_select": grid(0.7, 0.8)},
        seeds=(0,),
        asha=Asha(),
    )
    trials = make_trials(sweep, sweep.settings())
    with open_session(base.scale, lambda event: None) as session:
        store = Store(str(tmp_path / "store"))
        planner = Planner(store, session, lambda event: None)
        planned, found = planner.plan(trials), planner.found(trials)
        again = filled(trials, found)
        assert [each.trial.config for each in planned] == [trial.config for trial in again]
        assert [trial.id for trial in again] == [trial.id for trial in trials]
        replanned = Planner(store, session, lambda event: None).plan(again)
    assert [each.plan for each in replanned] == [each.plan for each in planned]
    assert len(weights[0]) == 1, "one kind: decided once"
    assert len({each.plan.outer for each in planned}) == 2
    for trial in again:
        optimizer = trial.values["train.optimizer"]
        assert trial.config.train.learning_rate == {"sgd": 0.03, "adamw": 1e-3}[optimizer]
        assert (trial.config.steps_of("outer"), trial.config.steps_of("inner")) == (250, 750)
        assert unranked(trial.config) == []
