"""Whole runs without Ray processes: the paper's presets on fakes, and folders of images."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
from fakes import write_fake
from PIL import Image
from safetensors.torch import save_file

import kdfm_ray as kdfm
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.training import measure
from kdfm_ray.types import UserError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]

# A run of seconds: two updates, no threshold that a network of two updates could not pass.
TINY = {
    "scale.num_workers": 0,
    "train.steps": 2,
    "train.batch_size": 4,
    "train.precision": "fp32",
    "train.memory_format": "channels_last",
    "fixmatch.mu": 1,
    "select.tau_select": 0.0,
    "select.clusterer": "kmeans",
    "label.batch_size": 64,
}


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("cifar10", marks=LONG),
        pytest.param("svhn", marks=LONG),
        pytest.param("cifar100", marks=LONG),
        "food101",
    ],
)
def test_the_papers_presets_on_fake_data(tmp_path, monkeypatch, name):
    """The preset as it stands, but for its size and for weights, which come from a file."""
    write_fake(name, tmp_path / "data", monkeypatch)
    weights = tmp_path / "efficientnet_b0.safetensors"
    save_file(timm.create_model("efficientnet_b0").state_dict(), weights)
    classes = 100 if name == "cifar100" else 10
    run = kdfm.train(
        f"{name}_4000",
        out=tmp_path / "run",
        store=str(tmp_path / "store"),
        settings=TINY
        | {
            "data.root": str(tmp_path / "data"),
            "data.num_labels": classes,
            "data.num_val": classes,
            "select.clusterer": "none",  # random pictures agree with nothing
            "model.pretrained": str(weights),
        },
        progress=False,
    )
    assert run.report["data"]["labeled"] == classes
    assert run.report["test_accuracy"]["inner"] is not None
    saved = json.loads((run.path / "model.json").read_text())
    assert saved["network"]["name"] == "efficientnet_b0"
    assert len(saved["classes"]) == classes


def write_pictures(folder, names, color, rng):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        noise = rng.integers(-40, 41, (40, 50, 3))
        Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8)).save(folder / name)


@pytest.fixture
def pets(tmp_path):
    """Reds are cats, blues are dogs."""
    rng = np.random.default_rng(0)
    reds, blues = (180, 60, 60), (60, 60, 180)
    for kind, color in (("cat", reds), ("dog", blues)):
        write_pictures(tmp_path / "labeled" / kind, [f"{i}.png" for i in range(8)], color, rng)
        names = [f"{kind}{i}.jpg" for i in range(20)]
        write_pictures(tmp_path / "unlabeled" / "deep" / "er", names, color, rng)
        write_pictures(tmp_path / "test" / kind, [f"{i}.png" for i in range(5)], color, rng)
    return tmp_path


def test_two_folders_of_ones_own(pets, capsys):
    settings = TINY | {
        "train.steps": 30,
        "train.ema_decay": 0.8,
        "data.image_size": 16,
        "train.eval_every": 10,
    }
    run = kdfm.train(
        labeled=pets / "labeled",
        unlabeled=pets / "unlabeled",
        test=pets / "test",
        model="wrn_10_2",
        out=pets / "run",
        store=str(pets / "store"),
        settings=settings,
        progress=False,
    )
    report = run.report
    assert "KD-FixMatch" in (run.path / "report.html").read_text()
    assert report["scored_on"] == "test"
    assert report["scores"]["inner"]["confusion"] == [[5, 0], [0, 5]]
    assert set(report["compared"]) == {"labeled_only", "outer"}
    for score in report["scores"].values():
        assert score["calibrated"]["images"] == report["data"]["val"]
        assert sum(score["calibrated"]["reliability"]["count"]) == score["count"] == 10
    assert report["overridden"]["looked_at"] == 24, "all that are trusted"
    assert run.classes == ["cat", "dog"]
    assert report["data"]["labeled"] + report["data"]["val"] == 16
    assert report["data"]["unlabeled"] == report["data"]["labeled"] + 40
    assert report["test_accuracy"]["inner"] == 1.0
    assert report["trusted"]["precision"] is None, "nobody knows the truth of the user's images"
    assert report["trusted"]["size"] == 24, "60 % of 40"
    red = np.full((1, 16, 16, 3), (180, 60, 60), dtype=np.uint8)
    assert run.predict_probs(red).argmax() == 0
    found = kdfm.load(run.path).predict(pets / "unlabeled").rows
    assert len(found) == 40
    assert all(row["label"] in row["path"] and row["confidence"] > 0.5 for row in found)

    # Without a test set the verdict is on validation.
    again = kdfm.train(
        labeled=pets / "labeled",
        unlabeled=pets / "unlabeled",
        model="wrn_10_2",
        out=pets / "run2",
        store=str(pets / "store"),
        settings=settings | {"baseline": False, "select.align_strength": 1.0},
    )
    told = " ".join(capsys.readouterr().out.split())
    assert "assumed: among the unlabeled images classes are in these proportions, too" in told
    assert again.report["test_accuracy"] == {"outer": None, "inner": None}
    assert again.report["val_accuracy"]["inner"] is not None
    assert "baseline" not in again.report["stages"]
    assert again.report["scored_on"] == "val"
    assert again.report["scores"]["inner"]["calibrated"]["images"] == again.report["data"]["val"]
    assert "There is no test set" in (again.path / "report.html").read_text()

    # A run that fails leaves its page, with what there is.
    with pytest.raises(UserError, match="the trusted subset is empty"):
        kdfm.train(
            labeled=pets / "labeled",
            unlabeled=pets / "unlabeled",
            model="wrn_10_2",
            out=pets / "run3",
            store=str(pets / "store"),
            settings=settings | {"baseline": False, "select.tau_select": 1.0},
            progress=False,
        )
    page = (pets / "run3" / "report.html").read_text()
    assert "the trusted subset is empty" in page
    assert "Map of the images" in page
    report = json.loads((pets / "run3" / "report.json").read_text())
    assert report["finished"] is False
    assert "the trusted subset is empty" in report["failed"]
    assert report["val_accuracy"] == {"outer": again.report["val_accuracy"]["outer"]}
    assert report["data"]["unlabeled"] == again.report["data"]["unlabeled"]
    with pytest.raises(UserError, match=r"ended early.*the trusted subset is empty"):
        kdfm.load(pets / "run3")


def test_the_recipe_graph_on_two_folders(pets, monkeypatch):
    from kdfm_ray.jobs import select
    from kdfm_ray.trust import select as trust

    given = {}

    def noting(make):
        def noted(*rest, **settings):
            given.update(settings)
            return make(*rest, **settings)

        return noted

    monkeypatch.setattr(select, "relabel_all", noting(select.relabel_all))
    monkeypatch.setattr(trust, "select_trusted", noting(trust.select_trusted))
    run = kdfm.train(
        labeled=pets / "labeled",
        unlabeled=pets / "unlabeled",
        model="wrn_10_2",
        out=pets / "run",
        store=str(pets / "store"),
        settings=TINY
        | {
            "recipe": "graph",
            "train.steps": 30,
            "train.ema_decay": 0.8,
            "train.eval_every": 15,
            "data.image_size": 16,
            "baseline": False,
            "equal_compute": True,
        },
        progress=False,
    )
    wanted = {"source": "graph", "strength": 0.5, "share": 0.6, "share_of_each": 0.05}
    assert given.items() >= wanted.items()
    selection = run.report["selection"]
    assert selection["relabeled"]["source"] == "graph"
    assert len(selection["relabeled"]["class_weights"]) == 2
    assert selection["filters"]["agreement"]["size"] == 24  # 60 % of 40
    assert selection["filters"]["before_quota"]["size"] == 40
    training = run.report["training"]
    steps = {name: training[name]["step"] for name in ("outer", "inner", "fixmatch_longer")}
    assert steps == {"outer": 15, "inner": 45, "fixmatch_longer": 60}
    assert "recipe: graph" in (run.path / "config.yaml").read_text()
    page = (run.path / "report.html").read_text()
    assert "all pseudo labels (of the neighbor graph, classes in proportion)" in page
    assert "of these the most confident: trusted" in page


def test_an_interrupted_run_goes_on_after_its_last_finished_stage(pets, monkeypatch):
    from kdfm_ray.jobs import label, pictures

    arguments = {
        "labeled": pets / "labeled",
        "unlabeled": pets / "unlabeled",
        "model": "wrn_10_2",
        "out": pets / "run",
        "store": str(pets / "store"),
        "settings": TINY | {"data.image_size": 16},
        "progress": False,
    }
    with monkeypatch.context() as patch:

        def interrupt(*_):
            raise KeyboardInterrupt

        patch.setattr(label.Labeler, "rows", interrupt)
        with pytest.raises(KeyboardInterrupt):
            kdfm.train(**arguments)
    left = json.loads((pets / "run" / "report.json").read_text())
    assert (left["finished"], left["failed"]) == (False, "it was interrupted")
    assert "it was interrupted" in (pets / "run" / "report.html").read_text()
    with monkeypatch.context() as patch:  # and one without a map is as good a run

        def broken(*_, **__):
            raise ZeroDivisionError

        patch.setattr(pictures, "flat_map", broken)
        run = kdfm.train(**arguments)
    assert "pictures" not in run.report["stages"]
    assert "Map of the images" not in (run.path / "report.html").read_text()
    assert run.report["reused"] == ["data", "baseline", "outer"]
    assert (run.report["finished"], run.report["failed"]) == (True, None)
    assert kdfm.load(run.path).report == run.report
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"baseline", "outer", "inner"}


def test_a_run_in_one_process_needs_no_ray_and_measures_its_numerics(pets):
    code = (
        "import sys, kdfm_ray as kdfm\n"
        f"settings = {TINY!r} | {{'data.image_size': 16, 'baseline': False}}\n"
        "settings |= {'train.precision': 'auto', 'train.memory_format': 'auto'}\n"
        "run = kdfm.train(labeled='labeled', unlabeled='unlabeled', model='wrn_10_2',\n"
        "    out='run', store='store', settings=settings, progress=False)\n"
        "print(run.report['numerics']['how'], 'ray' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=pets, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["measured False"]


OPEN = {
    "data.image_size": 16,
    "baseline": False,
    "train.precision": "auto",
    "train.memory_format": "auto",
}
REMEMBERED = "remembered from an earlier measurement"


@pytest.mark.long
def test_a_long_run_measures_compiled_passes_too_and_keeps_what_it_found(pets, monkeypatch):
    tried = []

    def measured(make_network, plain, shape, device):
        tried.append(plain)
        if len(tried) == 1:
            raise measure.CannotCompileError("RuntimeError: no compiler")
        return {replace(plain, compile=True): 0.1, plain: 0.2}

    def numerics(seed=0, **settings):
        run = kdfm.train(
            labeled=pets / "labeled",
            unlabeled=pets / "unlabeled",
            model="wrn_10_2",
            out=pets / f"runs/{len(list((pets / 'runs').glob('*')))}",
            store=str(pets / "store"),
            settings=TINY | OPEN | {"seed": seed} | settings,
            progress=False,
        )
        return run.report["numerics"]

    assert numerics()["how"] == "measured"
    monkeypatch.setattr(measure, "COMPILING", 0.0)  # so that a run of seconds is long enough
    monkeypatch.setattr(measure, "measure_compiled", measured)
    monkeypatch.setattr(Numerics, "compiled", lambda self, module, **_: module)
    failed = numerics(seed=1)
    assert failed["compile_error"] == "RuntimeError: no compiler"
    assert not failed["choice"].endswith("compiled")
    first = numerics(seed=2)  # somebody has installed one
    assert first["choice"] == f"{tried[1]} compiled"
    names = [row["numerics"] for row in first["measured"]]
    assert names[:2] == [f"{tried[1]} compiled", str(tried[1])]
    assert len(set(names)) == len(names) > 2, "the others are as they were measured"
    assert "compile_error" not in first
    later = numerics(seed=3)
    assert (later["choice"], later["how"]) == (first["choice"], REMEMBERED)
    assert len(tried) == 2
    again = numerics(seed=3, **{"select.share": 0.5})
    assert (again["choice"], again["how"]) == (first["choice"], "as this run was begun")
    assert numerics(seed=4, **{"train.compile": "off"})["choice"] == str(tried[1])
