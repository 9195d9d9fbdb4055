"""Exported files: each says what the network says, on real images, or is refused."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import kdfm_ray as kdfm
from kdfm_ray import cli
from kdfm_ray.data.images import Unreadable, decode, quiet_pillow
from kdfm_ray.data.inputs import read_image
from kdfm_ray.export import command, formats
from kdfm_ray.export.card import usage
from kdfm_ray.export.graph import Classifier
from kdfm_ray.jobs.finished import FinishedRun
from kdfm_ray.models.backbone import create_network
from kdfm_ray.models.factory import make_backbone
from kdfm_ray.types import RunFailed, UserError


@pytest.fixture(scope="module")
def exported(digits_run, tmp_path_factory):
    """A file of each format."""
    folder = tmp_path_factory.mktemp("exported")
    run = kdfm.load(digits_run)
    return {
        kind: run.export(kind, folder / f"digits{ending}")
        for kind, ending in formats.SUFFIX.items()
    }


def pictures(digit_files, count):
    files = sorted(digit_files.iterdir())[:count]
    return np.stack([decode(path, 16)[..., :1] for path in files])


@pytest.mark.slow
def test_onnx_runtime_gives_the_classes_that_predict_gives(exported, digits_run, digit_files):
    found = kdfm.load(digits_run).predict(digit_files, workers=0)
    images = pictures(digit_files, 1797)
    session = onnxruntime.InferenceSession(exported["onnx"].file)
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    (probs,) = session.run(None, {"images": images})
    assert [classes[row.argmax()] for row in probs] == [row["label"] for row in found.rows]
    confidence = [row["confidence"] for row in found.rows]
    np.testing.assert_allclose(probs.max(axis=1), confidence, atol=1e-4)


@pytest.mark.parametrize("kind", formats.SUFFIX)
def test_every_format_agrees_with_the_network_in_batches_of_any_size(exported, digit_files, kind):
    done = exported[kind]
    assert done.difference <= 1e-4
    assert done.checked == 256
    images = pictures(digit_files, 9)
    run = formats.opened(kind, done.file)
    probs = run(images)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
    alone = np.concatenate([run(images[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(alone, probs, atol=1e-5)


def test_metadata_and_input_of_the_onnx_file(exported, digits_run):
    model = onnx.load(exported["onnx"].file)
    texts = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(texts["classes"]) == [str(k) for k in range(10)]
    assert json.loads(texts["input"])["shape"] == ["n", 16, 16, 1]
    assert json.loads(texts["resize"])["size"] == 16
    assert "BILINEAR" in json.loads(texts["resize"])["recipe"]
    assert float(texts["temperature"]) == exported["onnx"].calibration.temperature
    (images,) = model.graph.input
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert images.type.tensor_type.shape.dim[0].dim_param, "any number of images"
    content = exported["onnx"].file.read_bytes()
    assert b"site-packages" not in content
    assert str(digits_run).encode() not in content


def test_metadata_and_input_of_the_torch_program(exported, digits_run):
    texts = dict.fromkeys(("classes", "resize", "temperature"), "")
    program = torch.export.load(exported["torch"].file, extra_files=texts)
    assert json.loads(texts["classes"]) == [str(k) for k in range(10)]
    assert "BILINEAR" in json.loads(texts["resize"])["recipe"]
    assert float(texts["temperature"]) == exported["torch"].calibration.temperature
    (name,) = program.graph_signature.user_inputs
    (images,) = (node.meta["val"] for node in program.graph.nodes if node.name == name)
    assert images.dtype == torch.uint8
    assert list(images.shape[1:]) == [16, 16, 1]
    assert isinstance(images.shape[0], torch.SymInt), "any number of images"
    with zipfile.ZipFile(exported["torch"].file) as file:
        content = b"".join(file.read(name) for name in file.namelist())
    assert b"site-packages" not in content
    assert str(Path(formats.__file__).parent.parent).encode() not in content


def test_weights_have_timms_names(exported, digits_run):
    network = kdfm.load(digits_run).network()
    backbone = make_backbone(network.spec, 0, pretrained=False)
    backbone.load_state_dict(load_file(exported["safetensors"].file))


def test_a_network_without_a_graph_says_what_to_do(digits_run, tmp_path, monkeypatch):
    def branching(self, images):
        logits = self.network(images.permute(0, 3, 1, 2)).logits
        return logits if logits.sum() > 0 else -logits

    monkeypatch.setattr(Classifier, "forward", branching)
    with pytest.raises(RunFailed) as caught:
        kdfm.load(digits_run).export("torch", tmp_path / "m.pt2")
    told = str(caught.value)
    assert "torch.export cannot make a graph of wrn_10_2" in told
    assert "--format safetensors" in told
    assert not list(tmp_path.iterdir())


def test_the_card_says_what_it_is_made_of(exported, digits_run):
    report = kdfm.load(digits_run).report
    for done in exported.values():
        text = done.card.read_text()
        assert done.card.name == f"{done.file.name}.md"
        assert report["split_hash"] in text
        assert f"images and labels (SHA-256): {report['data']['content_hash']}" in text
        assert report["config_hash"] in text
        assert f"{100 * report['test_accuracy']['inner']:.2f} %" in text
        assert "greatest difference" in text
        assert report["versions"]["torch"] in text
        assert "tau_select" in text


@pytest.mark.slow
@pytest.mark.parametrize("kind", formats.SUFFIX)
def test_the_cards_code_runs(exported, digits_run, digit_files, tmp_path, kind):
    run = kdfm.load(digits_run)
    code = usage(kind, exported[kind].file.name, FinishedRun.read(run.path, run.report))
    shutil.copy(exported[kind].file, tmp_path)
    Image.open(digit_files / "0000.png").convert("RGB").save(
        tmp_path / "image.jpg", quality=100, subsampling=0
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    (row,) = run.predict(tmp_path / "image.jpg").rows
    label, confidence = done.stdout.split()
    assert label == row["label"]
    assert float(confidence) == pytest.approx(row["confidence"], abs=1e-4)


def noise(*shape, dtype=np.uint8):
    most = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, most, shape, dtype=dtype, endpoint=True)


def turned(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def palette(transparency):
    image = Image.fromarray(noise(60, 70, 3)).quantize(16)
    image.info["transparency"] = transparency
    return image


# name of a file -> what is saved in it, and how
KINDS = {
    "plain.jpg": lambda: (Image.fromarray(noise(150, 170, 3)), {}),
    "grey.png": lambda: (Image.fromarray(noise(60, 70)), {}),
    "grey-alpha.png": lambda: (Image.fromarray(noise(60, 70, 2)), {}),
    "alpha.png": lambda: (Image.fromarray(noise(60, 70, 4)), {}),
    "exact-size.png": lambda: (Image.fromarray(noise(24, 24, 4)), {}),
    "palette.png": lambda: (Image.fromarray(noise(60, 70, 3)).quantize(16), {}),
    "palette-index.png": lambda: (palette(3), {"transparency": 3}),
    "palette-alphas.png": lambda: (palette(bytes(range(0, 256, 16))), {}),
    "key-color.png": lambda: (
        Image.fromarray(noise(60, 70, 3) // 128 * 255),
        {"transparency": (0, 255, 0)},
    ),
    "wide.png": lambda: (Image.fromarray(noise(60, 70, dtype=np.uint16)), {}),
    "wide.tif": lambda: (Image.fromarray(noise(60, 70, dtype=np.uint16)), {}),
    "cmyk.jpg": lambda: (Image.fromarray(noise(150, 170, 4), "CMYK"), {}),
    "bit.png": lambda: (Image.fromarray(noise(60, 70)).convert("1"), {}),
    "turned-alpha.png": lambda: (Image.fromarray(noise(60, 70, 4)), {"exif": turned(6)}),
    "turned-wide.png": lambda: (
        Image.fromarray(noise(60, 70, dtype=np.uint16)),
        {"exif": turned(8)},
    ),
    "broken-exif.jpg": lambda: (Image.fromarray(noise(60, 70, 3)), {"exif": b"Exif\0\0MM\0*junk"}),
} | {
    f"turned-{orientation}.jpg": lambda orientation=orientation: (
        Image.fromarray(noise(150, 170, 3)),
        {"exif": turned(orientation)},
    )
    for orientation in range(1, 9)
}
ODD = {
    "float.tif": lambda: (Image.fromarray(noise(60, 70).astype(np.float32)), {}),
    "32-bit.tif": lambda: (Image.fromarray(noise(60, 70, dtype=np.int32)), {}),
    "film.gif": lambda: (
        Image.fromarray(noise(60, 70)),
        {"save_all": True, "append_images": [Image.fromarray(255 - noise(60, 70))]},
    ),
}


def prepare(channels):
    """The function of a card, for images of 24 pixels a side."""
    report = {"data": {"image_shape": [24, 24, channels], "classes": ["cat", "dog"]}}
    code = usage("onnx", "x", FinishedRun(Path("run"), report, {}))
    names: dict = {}
    exec(code.partition("import onnxruntime")[0], names)
    return names["prepare"]


@pytest.mark.parametrize("name", KINDS)
def test_the_cards_preparation_is_that_of_training(tmp_path, name):
    image, how = KINDS[name]()
    path = tmp_path / name
    image.save(path, **how)
    with quiet_pillow():  # of the broken block
        np.testing.assert_array_equal(prepare(3)(path), decode(path, 24))
        np.testing.assert_array_equal(prepare(1)(path), read_image(str(path), 24, 1))


@pytest.mark.parametrize("name", ODD)
def test_the_cards_preparation_refuses_what_training_skips(tmp_path, name):
    image, how = ODD[name]()
    path = tmp_path / name
    image.save(path, **how)
    with pytest.raises(Unreadable) as reason:
        decode(path, 24)
    with pytest.raises(ValueError, match=r"pixels are|an animation") as caught:
        prepare(3)(path)
    assert str(reason.value)[:14] in str(caught.value)


def test_a_file_that_disagrees_is_not_kept(digits_run, tmp_path, monkeypatch):
    def other(kind, classifier, texts, path, write=formats.write):
        classifier.temperature.mul_(1.01)
        write(kind, classifier, texts | {"temperature": "9"}, path)

    monkeypatch.setattr(command, "write", other)
    with pytest.raises(RunFailed, match="differs from the run's by up to"):
        kdfm.load(digits_run).export("torch", tmp_path / "out" / "m.pt2")
    assert list((tmp_path / "out").iterdir()) == []


def test_images_to_check_with_may_be_given(digits_run, digit_files, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(digits_run, moved, ignore=shutil.ignore_patterns("calibration.json"))
    begun = json.loads((moved / "begun.json").read_text())
    (moved / "begun.json").write_text(json.dumps(begun | {"store": str(tmp_path / "gone")}))
    run = kdfm.load(moved)
    with pytest.raises(UserError, match="--images"):
        run.export("safetensors")
    done = run.export("safetensors", images=digit_files)
    assert done.file == moved / "export" / "model.safetensors"
    assert done.checked == 256
    assert done.calibration.temperature == 1.0


def test_the_command(digits_run, tmp_path, capsys):
    out = tmp_path / "digits.pt2"
    assert cli.main(["export", str(digits_run), "--format", "torch", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "checked on 256 images" in text
    assert f"written: {out}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--format", "tflite"], "--format tflite: choose onnx, torch, safetensors"),
        (["{run}", "--format", "onnx", "--out", "m.pt2"], "ends in .onnx"),
        (["{run}", "--format", "safetensors", "--out", "{run}/model.safetensors"], "own network"),
        (["nowhere"], "no finished run in nowhere"),
        (["{run}", "--fromat", "onnx"], "does not take --fromat"),
        (["{run}", "--format", "torch", "--images", "none"], "none does not exist"),
    ],
)
def test_mistakes(digits_run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", *(text.format(run=digits_run) for text in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("kdfm: ")
    assert message in captured.err
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_says_how_to_install_it(digits_run, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UserError, match=r"needs onnxscript: pip install 'kdfm_ray\[onnx\]'"):
        kdfm.load(digits_run).export("onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_b0", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_other_backbones_and_colors(tmp_path, name, kind):
    network = create_network(name, num_classes=5, image_channels=3, image_size=32, seed=0)
    classifier = Classifier(network, 1.7).eval()
    file = tmp_path / f"m{formats.SUFFIX[kind]}"
    formats.write(kind, classifier, {}, file)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(images)).numpy()
    probs = formats.opened(kind, file)(images)
    np.testing.assert_allclose(probs, expected, atol=1e-5)
