"""Data sets of a few random images in torchvision's exact layouts, with every class present.

torchvision checks MD5 sums; the fakes' own sums are put in their place, so its check still runs.
"""

import hashlib
import json
import pickle

import numpy as np
from PIL import Image


def write_fake(name, root, monkeypatch):
    """Write ``name`` below ``root``, about 100 training images."""
    rng = np.random.default_rng(0)
    WRITERS[name](root, monkeypatch, rng)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def pixels(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def _cifar10(root, monkeypatch, rng):
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name in names:
        entry = {"data": pixels(rng, 20, 3072), "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    sums = [[name, md5(folder / name)] for name in names]
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(folder / "batches.meta")})


def _cifar100(root, monkeypatch, rng):
    from torchvision.datasets import CIFAR100

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    lists = {}
    for name, n in (("train", 300), ("test", 100)):
        labels = [i % 100 for i in range(n)]
        entry = {"data": pixels(rng, n, 3072), "fine_labels": labels, "coarse_labels": [0] * n}
        (folder / name).write_bytes(pickle.dumps(entry))
        lists[name] = [[name, md5(folder / name)]]
    names = [f"c{i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    monkeypatch.setattr(CIFAR100, "train_list", lists["train"])
    monkeypatch.setattr(CIFAR100, "test_list", lists["test"])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": md5(folder / "meta")})


def _svhn(root, monkeypatch, rng):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    root.mkdir(parents=True, exist_ok=True)
    sums = {}
    for split, n in (("train", 100), ("test", 20)):
        path = root / f"{split}_32x32.mat"
        labels = (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]  # 10 stands for the digit 0
        savemat(path, {"X": pixels(rng, 32, 32, 3, n), "y": labels})
        sums[split] = ["none", path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", SVHN.split_list | sums)


def _food101(root, monkeypatch, rng):
    (root / "food-101" / "meta").mkdir(parents=True)
    for split, n in (("train", 8), ("test", 2)):
        names = {f"food{k}": [f"food{k}/{split}{i}" for i in range(n)] for k in range(10)}
        for name in (name for group in names.values() for name in group):
            path = root / "food-101" / "images" / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(rng, 70, 90, 3)).save(path)
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(names))


WRITERS = {"cifar10": _cifar10, "cifar100": _cifar100, "svhn": _svhn, "food101": _food101}
