"""Shapes and dtypes written in annotations are checked while the tests run; Ray stays on loopback.

Ray reads its setting when it is imported, which some test may do before a session is opened.
"""

import os

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# Ray runs workers at nice 15, where those of the other test process would get little of a CPU.
os.environ.setdefault("RAY_worker_niceness", "0")

CHECKED = [
    "kdfm_ray.data",
    "kdfm_ray.method",
    "kdfm_ray.trust",
    "kdfm_ray.augment",
    "kdfm_ray.models",
]
install_import_hook(CHECKED, "beartype.beartype")

LONG = ("ray", "e2e", "faults", "export", "cluster", "training")  # folders, longest first


def pytest_collection_modifyitems(items):
    """Long files first, so that of several processes none is left with one at the end."""

    def rank(item):
        folder = item.path.parent.name
        return LONG.index(folder) if folder in LONG else len(LONG)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A run of seconds on digits in this process: its folder, not to be written to but for what
    commands keep there."""
    import kdfm_ray as kdfm

    folder = tmp_path_factory.mktemp("digits")
    settings = {
        "scale.num_workers": 0,
        "train.steps": 40,
        "train.batch_size": 16,
        "train.eval_every": 40,
        "train.ema_decay": 0.9,
        "train.precision": "fp32",
        "train.memory_format": "channels_last",
        "fixmatch.mu": 1,
        "data.image_size": 16,
        "select.tau_select": 0.0,
        "select.clusterer": "none",
        "baseline": False,
    }
    run = kdfm.train(
        "digits",
        out=folder / "run",
        store=str(folder / "store"),
        settings=settings,
        progress=False,
    )
    return run.path


@pytest.fixture(scope="session")
def digit_files(tmp_path_factory):
    """All 1,797 digits as PNG files of 8x8 pixels."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(load_digits().images):
        pixels = np.rint(image * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
    return folder
