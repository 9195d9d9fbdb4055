"""The command line: every mistake at once, exit status 2, nothing written."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from experiments import PRESETS, describe
from kdfm_ray import cli
from kdfm_ray.config import default_values, parse_config


def write_images(folder, names, size=20):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / name)


@pytest.fixture
def at(tmp_path, monkeypatch):
    """A folder to stand in, without a store or a cluster of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDFM_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def run(capsys, *arguments):
    status = cli.main(list(arguments))
    return status, capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["trian"], ["no command 'trian'; commands: train, sweep, submit, predict"]),
        (["train", "digts"], ["no preset 'digts': did you mean digits?"]),
        (["train", "nowhere.py:f"], ["no preset file nowhere.py"]),
        (["train"], ["no data: give data.name"]),
        (["train", "digits", "--data.name", "cifar11"], ["'cifar11'", "cifar10", "stl10"]),
        (["train", "digits", "--model.name", "wrn_11"], ["'wrn_11'", "wrn_10_2"]),
        (["train", "digits", "--train.step", "5"], ["--train.step; did you mean --train.steps?"]),
        (["train", "digits", "extra"], ["unexpected extra"]),
        (["train", "digits", "--model.pretrained", "none"], ["model.pretrained = None"]),
        (["train", "digits", "--model.name", "none"], ["model.name = None"]),
        (["train", "digits", "--select.hidden-dims", "0,-3"], ["select.hidden_dims.0 = '0'"]),
        (
            ["train", "digits", "--train.steps", "abc", "--scale.num-workers", "99"],
            ["2 mistakes", "train.steps = 'abc'", "scale.num_workers = 99 is more than"],
        ),
        (
            ["train", "digits", "--seed", "x", "--train.batch-size", "0", "--train.stps", "3"],
            ["3 mistakes", "seed = 'x'", "train.batch_size = '0'", "--train.stps"],
        ),
        (["train", "digits", "--train.precision", "fp16"], ["train.precision = 'fp16'", "'bf16'"]),
        (["train", "digits", "--model.pretrained", "none.pth"], ["none.pth: no such file"]),
        (["train", "--data.labeled", "missing"], ["data.labeled = missing: no such folder"]),
        (
            ["train", "digits", "--scale.num-workers", "33"],
            ["scale.num_workers = 33 is more than the 16 labeled images of a global batch"],
        ),
        (["train", "digits", "--train.learning-rate", "-1"], ["train.learning_rate = '-1'"]),
        (["train", "digits", "--train.learning-rate", "inf"], ["train.learning_rate = 'inf'"]),
        (["train", "digits", "--train.steps", "1e3"], ["train.steps = '1e3'", "integer"]),
        (["train", "digits", "--train.optimizer", "adam"], ["train.optimizer = 'adam'", "adamw"]),
        (["train", "digits", "--fixmatch.tau", "1.5"], ["fixmatch.tau = '1.5'", "1"]),
        (["train", "digits", "--fixmatch.mu", "0"], ["fixmatch.mu = '0'"]),
        (["train", "digits", "--fixmatch.strong-views", "some"], ["'some'", "'masked'"]),
        (["train", "digits", "--select.clusterer", "dbscn"], ["'dbscn'", "'dbscan'"]),
        (["train", "digits", "--select.max-iter", "10"], ["max_iter = 10", "update_interval"]),
        (["train", "digits", "--data.image-size", "7"], ["data.image_size = '7'", "8"]),
        (["train", "digits", "--data.num-labels", "0"], ["data.num_labels = '0'"]),
        (["train", "digits", "--data.labeled", "x"], ["give data.name or folders, not both"]),
        (["train", "digits", "--augment.num-ops", "9"], ["augment.num_ops = '9'", "8"]),
        (["train", "digits", "--model.drop-rate", "1"], ["model.drop_rate = '1'"]),
        (["train", "digits", "--seed", "-1"], ["seed = '-1'"]),
        (["train", "digits", "--baseline", "perhaps"], ["baseline = 'perhaps'"]),
        (["train", "digits", "--inner.init", "pretrained"], ["needs weights", "model.pretrained"]),
        (["train", "digits", "--on-warning", "maybe"], ["on_warning = 'maybe'", "'stop'"]),
        (["train", "digits", "--faults.save-minutes", "0"], ["faults.save_minutes = '0'"]),
        (["train", "digits", "--faults.save-every", "0"], ["faults.save_every = '0'"]),
        (["train", "digits", "--faults.max-failures", "-1"], ["faults.max_failures = '-1'"]),
        (["train", "digits", "--scale.min-workers", "3"], ["scale.min_workers = 3 is more than"]),
        (["train", "digits", "--store", "s3://me:pw@bucket"], ["password in it"]),
        (["train", "digits", "--store", "nonsense://bucket"], ["fsspec"]),
        (["bench", "everything"], ["bench takes one of", "step"]),
        (["bench", "step", "--sise", "32"], ["does not take --sise"]),
        (["presets", "now"], ["takes no arguments"]),
        (["train", "smoke"], ["smoke is a sweep", "kdfm sweep smoke"]),
        (["sweep"], ["name a sweep", "kdfm presets"]),
        (["sweep", "smokee"], ["no sweep 'smokee'", "did you mean smoke"]),
        (["sweep", "digits"], ["digits is a single run", "--grid select.tau_select=0.7"]),
        (["sweep", "smoke", "--seed", "7"], ["--seeds 7"]),
        (["sweep", "smoke", "--seeds", "a"], ["take numbers"]),
        (["sweep", "smoke", "--asha", "maybe"], ["--asha maybe", "on or off"]),
        (["sweep", "smoke", "--grid", "select.tau_select"], ["FIELD=VALUE"]),
        (["sweep", "smoke", "--grid", "select.tau=0.5"], ["select.tau is no config field"]),
        (["sweep", "smoke", "--grid", "train.steps=x"], ["train.steps = 'x'"]),
        (["sweep", "smoke", "--grid", "select.hidden_dims=8,4"], ["are lists", "kdfm_ray.Sweep"]),
        (
            ["sweep", "recipes_cpu", "--grid", "inner.loss=ce,sce"],
            ["--grid inner.loss: the cases of this sweep vary it already"],
        ),
        (["sweep", "smoke", "--max-concurent", "2"], ["did you mean --max-concurrent"]),
        (["sweep", "smoke", "--max-concurrent", "0"], ["max_concurrent = 0"]),
        (["sweep", "smoke", "--train.eval-every", "500"], ["train.eval_every = 500 leaves none"]),
        (["sweep", "smoke", "--data.num-val", "0"], ["asha compares validation accuracies"]),
        (["sweep", "--status"], ["takes the folder of a sweep"]),
        (["sweep", "--status", "/no/such"], ["no sweep in /no/such"]),
        ([], []),
    ],
)
def test_bad_command_lines(at, capsys, arguments, messages):
    status, output = run(capsys, *arguments)
    assert status == 2
    for message in messages:
        assert message in output.err
    assert "Traceback" not in output.err
    assert not list(at.iterdir()), "nothing is written"


# Found when the data are looked at; in this process, so that no cluster starts.
HERE = ["--scale.num-workers", "0", "--train.steps", "2", "--model.name", "wrn_10_2"]


@pytest.mark.parametrize(
    ("flags", "messages"),
    [
        (["--data.num-labels", "5"], ["5", "10"]),
        (["--data.num-labels", "100000"], ["100000"]),
        (["--data.num-labels", "none"], ["there is nothing to label"]),
        (["--train.norm-sync", "global"], ["runs on GPUs only"]),
        (["--data.num-val", "100000"], ["100000"]),
        (["--scale.use-gpu", "yes"], ["scale.use_gpu = yes, but there is no GPU"]),
        (
            ["--model.name", "vit_tiny_patch16_224", "--data.image-size", "30"],
            ["30", "vit_tiny_patch16_224"],
        ),
    ],
)
def test_what_does_not_fit_the_digits(at, capsys, flags, messages):
    import torch

    if "--scale.use-gpu" in flags and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    status, output = run(capsys, "train", "digits", *HERE, *flags)
    assert status == 2, output.err
    for message in messages:
        assert message in output.err
    assert not (at / "runs").exists(), "no run folder"


class Evil:
    """Pickled, it makes a file when it is read."""

    def __reduce__(self):
        return open, ("was-here", "w")


def test_files_from_elsewhere_run_no_code(at, capsys):
    for name in ("weights.pth", "weights.safetensors"):
        (at / name).write_bytes(pickle.dumps({"conv.weight": Evil()}))
        status, output = run(capsys, "train", "digits", *HERE, "--model.pretrained", name)
        assert status == 2
        assert name in output.err
        assert "Traceback" not in output.err
        assert not (at / "was-here").exists()


@pytest.mark.parametrize("store", ["file", "file/below"])
def test_a_store_that_cannot_be(at, capsys, store):
    (at / "file").write_text("dear")
    status, output = run(capsys, "train", "digits", *HERE, "--store", store)
    assert status == 2
    assert "give a folder you can write to" in output.err
    assert [path.name for path in at.iterdir()] == ["file"]


def test_an_out_that_is_a_file(at, capsys):
    (at / "file").write_text("dear")
    status, output = run(capsys, "train", "digits", *HERE, "--out", "file")
    assert status == 2
    assert "file is a file; give a folder for the run" in output.err
    assert (at / "file").read_text() == "dear"


def test_a_damaged_config_in_the_run_folder(at, capsys):
    (at / "mine").mkdir()
    (at / "mine" / "config.yaml").write_text("seed: [")
    status, output = run(capsys, "train", "digits", *HERE, "--out", "mine")
    assert status == 2
    assert "cannot read the configuration" in output.err
    assert "Traceback" not in output.err


def test_bad_folders(at, capsys):
    def train(*flags, read=False):
        status, output = run(capsys, "train", *HERE, "--data.labeled", "labeled", *flags)
        assert status == 2
        assert "Traceback" not in output.err
        assert (at / "runs").exists() == read, "a report is left of images that were read"
        return output.err

    (at / "labeled").mkdir()
    assert "labeled" in train()  # empty
    write_images(at / "labeled" / "cat", ["1.png", "2.png"])
    assert "class" in train()  # one class only
    (at / "labeled" / "dog").mkdir()
    assert "dog" in train()  # a class without images
    write_images(at / "labeled" / "dog", ["1.png"])
    (at / "labeled" / "dog" / "broken.png").write_bytes(b"no image")
    assert "broken.png" in train(read=True)
    (report,) = (at / "runs").glob("run-*/report.json")
    (skipped,) = json.loads(report.read_text())["data"]["skipped"]
    assert skipped["path"] == str(at / "labeled" / "dog" / "broken.png")
    shutil.rmtree(at / "runs")
    (at / "labeled" / "dog" / "broken.png").unlink()
    (at / "unlabeled").mkdir()
    assert "unlabeled" in train("--data.unlabeled", "unlabeled")


def test_a_run_folder_is_not_overwritten(at, capsys):
    config = parse_config({"data": {"name": "digits"}, "seed": 7})
    (at / "mine").mkdir()
    (at / "mine" / "config.yaml").write_text(config.to_yaml())
    (at / "mine" / "report.json").write_text("{}")
    status, output = run(capsys, "train", "digits", *HERE, "--out", "mine")
    assert status == 2
    assert "holds a run with another config" in output.err
    assert "seed was 7, is 0" in output.err
    (at / "letters").mkdir()
    (at / "letters" / "love.txt").write_text("dear")
    status, output = run(capsys, "train", "digits", *HERE, "--out", "letters")
    assert status == 2
    assert "holds other files and no run" in output.err
    assert (at / "letters" / "love.txt").read_text() == "dear"


def test_flags_override_a_preset():
    values = PRESETS["digits"]().model_dump(mode="json")
    problems = cli.parse_flags(
        [
            *("--train.steps", "7", "--data.num-labels", "none", "--baseline", "no"),
            *("--select.hidden-dims", "64,32", "--select.clusterer", "none"),
        ],
        values,
    )
    config = parse_config(values, problems)
    assert config.train.steps == 7
    assert config.data.num_labels is None
    assert config.baseline is False
    assert config.select.hidden_dims == (64, 32)
    assert config.select.clusterer == "none"
    assert config.train.eval_every == PRESETS["digits"]().train.eval_every


@pytest.mark.parametrize(("flags", "verbose"), [([], False), (["--verbose"], True)])
def test_rays_logs_are_asked_for_by_a_flag(at, monkeypatch, flags, verbose):
    """From the command line to Ray itself, which is told to be quiet else."""
    import ray

    told = {}

    def init(**options):
        told.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "unset")
    monkeypatch.delenv("RAY_BACKEND_LOG_LEVEL")
    assert cli.main(["train", "digits", "--out", "run", *flags]) == cli.INTERRUPTED
    assert ("log_to_driver" not in told) == verbose, "its default is to show them"
    assert ("logging_level" not in told) == verbose
    assert (os.environ.get("RAY_BACKEND_LOG_LEVEL") != "fatal") == verbose


def test_the_flags_that_stay(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse_flags(["--help"], default_values())
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in (
        *("--seed", "--out", "--store", "--train.precision", "--train.steps", "--model.name"),
        *("--model.pretrained", "--data.num-labels", "--data.image-size", "--scale.num-workers"),
        "--scale.use-gpu",
    ):
        assert flag in text, flag


def test_presets_are_listed_with_cost_and_result(capsys):
    status, output = run(capsys, "presets")
    assert status == 0
    for name in PRESETS:
        assert name in output.out
        about = describe(name)
        assert about.what
        assert about.cost
        assert about.result


def test_a_preset_from_a_file(at):
    from experiments import find_preset

    (at / "mine.py").write_text(
        "from kdfm_ray import Config\n"
        "def tiny():\n"
        "    return Config.model_validate({'data': {'name': 'digits'}, 'seed': 5})\n"
    )
    assert find_preset(f"{at}/mine.py:tiny")().seed == 5


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{'data': {'name': 'digits'}}", "returned a dict"),
        ("Config.model_validate({'data': {'name': 'digits'}, 'sed': 1})", "sed: unknown"),
    ],
)
def test_a_preset_that_is_no_config(at, capsys, body, message):
    (at / "mine.py").write_text(f"from kdfm_ray import Config\ndef tiny():\n    return {body}\n")
    status, output = run(capsys, "train", "mine.py:tiny")
    assert status == 2
    assert message in output.err


def test_help_is_quick_and_module_runs():
    done = subprocess.run(
        [sys.executable, "-m", "kdfm_ray", "--help"], capture_output=True, text=True, check=True
    )
    assert "kdfm train [PRESET]" in done.stdout
