"""The model card: what the file is, how good it is, what it was made of, and how to use it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from kdfm_ray.export.formats import Format
from kdfm_ray.export.graph import RESIZE
from kdfm_ray.jobs.finished import Calibration, FinishedRun
from kdfm_ray.report.facts import versions

MOST_CLASSES = 50  # that are listed; all of them are in the file
ROWS = {
    "inner": "this network (KD-FixMatch)",
    "outer": "FixMatch alone",
    "fixmatch_longer": "FixMatch alone, with the updates of both networks",
    "labeled_only": "labeled images alone",
}
PREPARE = """\
import numpy as np
from PIL import Image

TURNS = {{2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}}  # EXIF orientation -> Image.Transpose


def prepare(path, size={size}):
    with Image.open(path) as file:
        if getattr(file, "n_frames", 1) > 1 and file.format not in ("MPO", "PSD"):
            raise ValueError(f"{{path}}: an animation, or of several pages")
        file.draft("RGB", (2 * size, 2 * size))
        image = to_rgb(file)
        try:
            turn = TURNS.get(file.getexif().get(274))
        except Exception:  # a broken EXIF block
            turn = None
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if turn is not None:
        image = image.transpose(turn)
    return {pixels}


def to_rgb(file):
    if file.mode.startswith("I"):  # 16 bits, of which the upper 8 count
        wide = np.asarray(file).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("its pixels are 32-bit numbers")
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if file.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if file.has_transparency_data:
        above = file.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return file.convert("RGB")
"""
USE: dict[Format, str] = {
    "onnx": """\
import json

import onnxruntime

session = onnxruntime.InferenceSession("{file}")
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
images = np.stack([prepare("image.jpg")])  # uint8 [n, {height}, {width}, {channels}]
probs = session.run(["probs"], {{"images": images}})[0]  # float32 [n, {classes}]
print(classes[probs[0].argmax()], probs[0].max())
""",
    "torch": """\
import json

import torch

texts = {{"classes": ""}}  # filled with what the file says; also input, resize, temperature, ...
classify = torch.export.load("{file}", extra_files=texts).module()  # unpickles parts of it
classes = json.loads(texts["classes"])
images = torch.from_numpy(np.stack([prepare("image.jpg")]))  # uint8
with torch.inference_mode():
    probs = classify(images).numpy()  # float32 [n, {classes}]
print(classes[probs[0].argmax()], probs[0].max())
""",
    "safetensors": """\
import json

import torch
from kdfm_ray.export.formats import read_safetensors
from safetensors import safe_open

with safe_open("{file}", framework="pt") as file:  # weights under timm's names
    classes = json.loads(file.metadata()["classes"])
classify = read_safetensors("{file}")  # normalization, network, temperature, softmax
images = torch.from_numpy(np.stack([prepare("image.jpg")]))
with torch.inference_mode():
    probs = classify(images).numpy()  # float32 [n, {classes}]
print(classes[probs[0].argmax()], probs[0].max())
""",
}


def usage(kind: Format, file: str, run: FinishedRun) -> str:
    """Python that reads an image and classifies it with the file."""
    height, width, channels = run.image_shape
    pixels = "np.asarray(image)"
    if channels == 1:
        pixels += ".mean(axis=2, keepdims=True).round().astype(np.uint8)"
    use = USE[kind].format(
        file=file, height=height, width=width, channels=channels, classes=len(run.classes)
    )
    imports, _, rest = use.partition("\n\n")
    return f"{imports}\n\n{PREPARE.format(size=height, pixels=pixels)}\n\n{rest}"


def make_card(
    kind: Format,
    file: Path,
    name: str,
    run: FinishedRun,
    calibration: Calibration,
    checked: tuple[float, int],
) -> str:
    """The card as Markdown.

    Args:
        kind: format of the file.
        file: the file as written.
        name: what it is called.
        run: what it was made of.
        calibration: its temperature.
        checked: greatest absolute difference of a probability, over so many images.
    """
    report, data = run.report, run.report["data"]
    network = json.loads(run.model["model.json"])["network"]
    height, width, channels = run.image_shape
    classes = ", ".join(run.classes[:MOST_CLASSES])
    if len(run.classes) > MOST_CLASSES:
        classes += f" and {len(run.classes) - MOST_CLASSES} more (all are in the file)"
    difference, count = checked
    config = (run.path / "config.yaml").read_text()
    parts = [
        f"# {name}",
        f"An image classifier of {len(run.classes)} classes ({network['name']}), trained by "
        f"KD-FixMatch from {_count(data['labeled'])} labeled and {_count(data['unlabeled'])} "
        "unlabeled images with kdfm_ray.",
        f"Classes: {classes}.",
        "## Input and output",
        f"- In: `images`, uint8 `[n, {height}, {width}, {channels}]`"
        + (" (red, green, blue)." if channels == 3 else " (mean of red, green, blue, rounded)."),
        f"- Out: `probs`, float32 `[n, {len(run.classes)}]`, softmax of logits divided by the "
        f"temperature {calibration.temperature:.4f}. Normalization is inside.",
        f"- Preparing an image, S = {height}: {RESIZE}.",
        f"- Calibration: {calibration}.",
        f"- Checked against the float32 network on {count:,} images of the run: greatest "
        f"difference of a probability {difference:.1e}.",
        "## Accuracy",
        _accuracies(report),
        *[f"- Warning: {text}" for text in report.get("warnings", [])],
        "## Use",
        f"```python\n{usage(kind, name, run).rstrip()}\n```",
        "## Made of",
        _lines(
            {
                "this file (SHA-256)": hashlib.sha256(file.read_bytes()).hexdigest(),
                "weights (SHA-256)": calibration.model,
                "images and labels (SHA-256)": data.get("content_hash"),
                "images (key in the store)": report.get("keys", {}).get("dataset"),
                "split (hash)": report.get("split_hash"),
                "config (hash)": report.get("config_hash"),
                "seed": report.get("seed"),
                "precision and layout in training": report.get("numerics", {}).get("choice"),
            }
        ),
        "Versions in training:",
        _lines(report.get("versions", {})),
        "Versions in export, where they are others:",
        _lines(_others(versions(), report.get("versions", {}))),
        "Config:",
        f"```yaml\n{config.rstrip()}\n```",
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return re.sub(r"(?m)^(- .*)\n\n(?=- )", r"\1\n", text)  # items of a list stand together


def _accuracies(report: dict[str, Any]) -> str:
    tested, validated = report["test_accuracy"], report["val_accuracy"]
    data = report["data"]
    lines = [
        f"| network | test ({_count(data['test'])} images) | validation ({_count(data['val'])}) |",
        "|---|---|---|",
    ]
    for role, title in ROWS.items():
        if role in validated:
            lines.append(
                f"| {title} | {_percent(tested.get(role))} | {_percent(validated[role])} |"
            )
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _count(value: int | None) -> str:
    return "no" if value is None else f"{value:,}"


def _lines(values: dict[str, Any]) -> str:
    found = [f"- {name}: {value}" for name, value in values.items() if value is not None]
    return "\n".join(found) or "- none"


def _others(now: dict[str, str], before: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in now.items() if before.get(name) != value}
