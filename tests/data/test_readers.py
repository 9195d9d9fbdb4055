"""Tiny fakes in the exact layouts of the real files, read through torchvision's own code.

torchvision checks MD5 sums: the fakes' sums are put in their place, so that its check still runs.
"""

import gzip
import hashlib
import json
import pickle
import socket
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from kdfm_ray.data.catalog import load
from kdfm_ray.types import UserError

RANDOM = np.random.default_rng(0)
FIRST = {"mnist": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9], "fashion_mnist": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test may reach the network; what was asked for is collected."""
    asked = []

    def refuse(request, *_, **__):
        asked.append(getattr(request, "full_url", request))
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def pixels(*shape):
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


# MNIST and Fashion-MNIST


def idx_bytes(array):
    head = bytes([0, 0, 8, array.ndim])
    return head + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_idx(folder, name, packed=False):
    """The four files with 30 + 12 images; returns train images and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    train_x, train_y = pixels(30, 28, 28), np.arange(30, dtype=np.uint8) % 10
    test_x, test_y = pixels(12, 28, 28), np.array([*FIRST[name], 3, 3], dtype=np.uint8)
    for part, x, y in (("train", train_x, train_y), ("t10k", test_x, test_y)):
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            content = idx_bytes(array)
            path = folder / f"{part}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return train_x, train_y


TORCH_NAME = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("where", ["{}/raw", "raw", "."])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_wherever_it_lies(tmp_path, name, where, packed, offline):
    images, labels = write_idx(tmp_path / where.format(TORCH_NAME[name]), name, packed)
    data = load(name, tmp_path)
    np.testing.assert_array_equal(data.train.images, images[..., None])
    np.testing.assert_array_equal(data.train.labels, labels)
    assert data.train.labels.dtype == np.int64
    assert data.test.images.shape == (12, 28, 28, 1)
    assert data.test.labels[:10].tolist() == FIRST[name]
    assert data.flip == (name == "fashion_mnist")
    assert data.classes[9] == ("Ankle boot" if name == "fashion_mnist" else "9")
    assert data.train.images.flags.writeable
    assert not offline


def test_idx_resized(tmp_path):
    images, _ = write_idx(tmp_path, "fashion_mnist")
    data = load("fashion_mnist", tmp_path, 32)
    assert data.train.images.shape == (30, 32, 32, 1)
    expected = Image.fromarray(images[3]).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(data.train.images[3, ..., 0], np.asarray(expected))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_other_sets_files_are_refused(tmp_path, name):
    other = "mnist" if name == "fashion_mnist" else "fashion_mnist"
    write_idx(tmp_path, other)
    with pytest.raises(UserError, match=f"those of {TORCH_NAME[other]}, not of {TORCH_NAME[name]}"):
        load(name, tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_idx_file_is_named(tmp_path, packed):
    write_idx(tmp_path, "mnist", packed)
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.* is damaged"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\0", b"<html>not found</html>"])
def test_something_else_under_the_name_is_named(tmp_path, content):
    write_idx(tmp_path, "mnist")
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte is damaged"):
        load("mnist", tmp_path)


def test_labels_of_another_set_are_refused(tmp_path):
    write_idx(tmp_path, "mnist")
    short = idx_bytes(np.zeros(7, dtype=np.uint8))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(short)
    with pytest.raises(UserError, match="do not belong together"):
        load("mnist", tmp_path)


# CIFAR


def old_pickle(entry):
    """As NumPy of Python 2's days wrote it: other module name, 0 and 1 for booleans."""
    content = pickle.dumps(entry, protocol=2).replace(b"numpy._core.", b"numpy.core.")
    assert b"\x89\x88\x87" in content
    return content.replace(b"\x89\x88\x87", b"K\0K\1\x87")


def write_cifar10(root, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rows = []

    def batch(name, n):
        data, labels = pixels(n, 3072), [i % 10 for i in range(n)]
        (folder / name).write_bytes(old_pickle({"data": data, "labels": labels}))
        rows.append(data)
        return [name, md5(folder / name)]

    train = [batch(f"data_batch_{i}", 4) for i in range(1, 6)]
    test = [batch("test_batch", 3)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(folder / "batches.meta")})
    return np.concatenate(rows).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def test_cifar10(tmp_path, monkeypatch, offline):
    images = write_cifar10(tmp_path, monkeypatch)
    data = load("cifar10", tmp_path)
    assert data.classes == tuple("abcdefghij")
    np.testing.assert_array_equal(data.train.images, images[:20])
    np.testing.assert_array_equal(data.test.images, images[20:])
    assert data.train.labels.tolist() == [0, 1, 2, 3] * 5
    assert data.train.images.flags.c_contiguous
    assert data.flip
    assert not offline


def test_a_damaged_file_is_downloaded_again_or_told(tmp_path, monkeypatch, offline):
    write_cifar10(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py/data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="cifar10 cannot be loaded: it is not whole in"):
        load("cifar10", tmp_path)
    assert len(offline) >= 1


def test_cifar100(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    lists = {}
    for name, n in (("train", 9), ("test", 4)):
        entry = {"data": pixels(n, 3072), "fine_labels": [99] * n, "coarse_labels": [1] * n}
        (folder / name).write_bytes(old_pickle(entry))
        lists[name] = [[name, md5(folder / name)]]
    names = [f"c{i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    monkeypatch.setattr(CIFAR100, "train_list", lists["train"])
    monkeypatch.setattr(CIFAR100, "test_list", lists["test"])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": md5(folder / "meta")})
    data = load("cifar100", tmp_path)
    assert data.classes == tuple(names)
    assert data.train.labels.tolist() == [99] * 9
    assert data.test.images.shape == (4, 32, 32, 3)


# SVHN, STL-10, Food-101


def test_svhn(tmp_path, monkeypatch, offline):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    images, labels = pixels(11, 32, 32, 3), np.arange(11) % 10
    sums = {}
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        ten_for_zero = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": ten_for_zero})
        sums[split] = ["http://nowhere.invalid", path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", SVHN.split_list | sums)
    data = load("svhn", tmp_path)
    np.testing.assert_array_equal(data.train.images, images)
    np.testing.assert_array_equal(data.test.labels, labels)
    assert data.classes == tuple("0123456789")
    assert not data.flip
    assert not offline


def test_stl10(tmp_path, monkeypatch, offline):
    from torchvision.datasets import STL10

    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = {"train": pixels(5, 96, 96, 3), "unlabeled": pixels(6, 96, 96, 3)}
    images["test"] = pixels(3, 96, 96, 3)
    for name, array in images.items():  # column by column, channel by channel
        (folder / f"{name}_X.bin").write_bytes(array.transpose(0, 3, 2, 1).tobytes())
    (folder / "train_y.bin").write_bytes(bytes([1, 2, 3, 10, 1]))
    (folder / "test_y.bin").write_bytes(bytes([10, 9, 8]))
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    for attribute in ("train_list", "test_list"):
        names = [name for name, _ in getattr(STL10, attribute)]
        monkeypatch.setattr(STL10, attribute, [[name, md5(folder / name)] for name in names])
    data = load("stl10", tmp_path)
    both = np.concatenate([images["train"], images["unlabeled"]])
    np.testing.assert_array_equal(data.train.images, both)
    assert data.train.labels.tolist() == [0, 1, 2, 9, 0, *[-1] * 6]
    assert data.test.labels.tolist() == [9, 8, 7]
    assert data.classes[0] == "airplane"
    assert load("stl10", tmp_path, 32).train.images.shape == (11, 32, 32, 3)
    assert not offline


def write_food101(root):
    meta = {}
    for split, n in (("train", 3), ("test", 2)):
        meta[split] = {food: [f"{food}/{split}{i}" for i in range(n)] for food in ("soup", "cake")}
        for food, names in meta[split].items():
            for name in names:
                path = root / "food-101/images" / f"{name}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                color = (200, 0, 0) if food == "soup" else (0, 0, 200)
                Image.new("RGB", (90, 70), color).save(path)
    (root / "food-101/meta").mkdir()
    for split, names in meta.items():
        (root / f"food-101/meta/{split}.json").write_text(json.dumps(names))


def test_food101(tmp_path, offline):
    write_food101(tmp_path)
    events = []
    data = load("food101", tmp_path, emit=events.append)
    assert data.classes == ("cake", "soup")
    assert data.train.images.shape == (6, 64, 64, 3)
    assert data.test.labels.tolist() == [1, 1, 0, 0]
    reds = data.train.images[:, 30, 30, 0] > 100
    np.testing.assert_array_equal(reds, data.train.labels == 1)
    assert events[-1]["phase"] == "decode"
    assert not offline


def test_food101_half_unpacked(tmp_path):
    write_food101(tmp_path)
    (tmp_path / "food-101/images/cake/train1.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of its 6 train images are missing, such as .*train1"):
        load("food101", tmp_path)


def test_food101_reads_nothing_outside_its_root(tmp_path):
    root = tmp_path / "root"
    write_food101(root)
    Image.new("RGB", (90, 70)).save(tmp_path / "secret.jpg")
    meta = root / "food-101/meta/train.json"
    names = json.loads(meta.read_text())
    names["cake"][1] = "../../../secret"
    meta.write_text(json.dumps(names))
    with pytest.raises(UserError, match=r"names .*secret.jpg, which is outside"):
        load("food101", root)


# What cannot be had

LAYOUTS = {
    "mnist": "MNIST/raw/",
    "fashion_mnist": "dataset-fashion-mnist",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "svhn": "train_32x32.mat",
    "food101": "food-101.tar.gz",
    "stl10": "stl10_binary",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_cannot_be_downloaded_is_told(tmp_path, name, offline):
    root = tmp_path / "deep/root"
    with pytest.raises(UserError) as caught:
        load(name, root)
    message = str(caught.value)
    for part in (
        f"{name} cannot be loaded",
        str(root),
        "no network here",
        LAYOUTS[name],
        "data.root",
    ):
        assert part in message
    assert "://" not in message
    assert "\n" not in message
    assert offline  # it was tried
    assert list(tmp_path.iterdir()) == []  # and left nothing


def test_a_root_that_is_a_file_is_told(tmp_path):
    (tmp_path / "root").touch()
    with pytest.raises(UserError, match="cifar10 cannot be loaded"):
        load("cifar10", tmp_path / "root")


def test_an_existing_root_is_not_removed(tmp_path):
    (tmp_path / "root").mkdir()
    with pytest.raises(UserError):
        load("mnist", tmp_path / "root")
    assert [path.name for path in tmp_path.rglob("*")] == ["root"]


def test_the_socket_timeout_is_put_back(tmp_path):
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(7)
    try:
        with pytest.raises(UserError):
            load("svhn", tmp_path)
        assert socket.getdefaulttimeout() == 7
    finally:
        socket.setdefaulttimeout(before)
