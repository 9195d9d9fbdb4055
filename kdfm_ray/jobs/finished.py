"""What a finished run left: its network as bytes for any process, its images, its temperature."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdfm_ray.config import Config
from kdfm_ray.data.split import Split
from kdfm_ray.jobs.prepare import load_images
from kdfm_ray.jobs.session import Session
from kdfm_ray.store import Artifact, Store, default_root
from kdfm_ray.types import UserError

if TYPE_CHECKING:  # the driver of a cluster computes nothing: it needs no torch
    from kdfm_ray.models.backbone import Network

MODEL_FILES = ("model.json", "model.safetensors")
CALIBRATION = "calibration.json"
BATCH_SIZE = 256  # images per forward pass


@dataclass(frozen=True)
class FinishedRun:
    """A run folder that can be predicted with and exported from.

    Attributes:
        path: the folder.
        report: the content of its ``report.json``.
        model: the network's files, name -> bytes.
    """

    path: Path
    report: dict[str, Any]
    model: dict[str, bytes]

    @classmethod
    def read(cls, path: Path, report: dict[str, Any]) -> FinishedRun:
        """Read the network's files.

        Raises:
            UserError: one is missing.
        """
        try:
            model = {name: (path / name).read_bytes() for name in MODEL_FILES}
        except OSError as error:
            raise UserError(
                f"{path} holds no network ({error.strerror}: {Path(error.filename).name}): give "
                "the folder of a finished run"
            ) from error
        return cls(path, report, model)

    @property
    def classes(self) -> list[str]:
        """Class names; position = class number."""
        names: list[str] = self.report["data"]["classes"]
        return names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images that the network reads."""
        height, width, channels = self.report["data"]["image_shape"]
        return height, width, channels

    def model_hash(self) -> str:
        """SHA-256 (hex) of the weights' file."""
        return hashlib.sha256(self.model["model.safetensors"]).hexdigest()

    def dataset(self) -> Artifact | None:
        """The images that the run was made of, where its store still has them."""
        root = self.store_root()
        key = self.report.get("keys", {}).get("dataset")
        if key is None or not ("://" in root or Path(root).is_dir()):
            return None
        try:
            return Store(root).find("dataset", key)
        except (OSError, UserError):
            return None

    def store_root(self) -> str:
        """Where the run's artifacts lie, or lay."""
        try:
            begun = json.loads((self.path / "begun.json").read_text())
        except (OSError, ValueError):
            begun = {}
        try:
            named = begun.get("store") or Config.from_yaml(self.path / "config.yaml").store
        except (OSError, UserError):
            named = None
        return str(named or default_root())

    def gpus_per_actor(self) -> float:
        """Share of a GPU that an actor has, as ``label.gpus_per_actor`` of the run; else 1."""
        try:
            return Config.from_yaml(self.path / "config.yaml").label.gpus_per_actor
        except (OSError, UserError):
            return 1.0

    def val_index(self) -> np.ndarray:
        """Positions of the validation images, int64 ``[n]``."""
        return Split.load(self.path / "split.npz").val_index


@dataclass(frozen=True)
class Calibration:
    """The temperature of a network's logits.

    Attributes:
        temperature: what logits are divided by; 1 where there was nothing to fit it to.
        images: validation images that it was fitted to.
        loss: mean negative log-likelihood of theirs (nats), before and after.
        error: expected calibration error of theirs (fraction), before and after.
        model: SHA-256 (hex) of the weights that it belongs to.
    """

    temperature: float
    images: int
    loss: tuple[float, float] | None
    error: tuple[float, float] | None
    model: str

    def __str__(self) -> str:
        if self.loss is None or self.error is None:
            return "confidence is not calibrated (temperature 1)"
        return (
            f"temperature {self.temperature:.3f} from {self.images:,} validation images "
            f"(calibration error {self.error[0]:.1%} before, {self.error[1]:.1%} after)"
        )


def load_model(files: Mapping[str, bytes]) -> Network:
    """The network of ``FinishedRun.model``; on the CPU, in eval mode.

    Raises:
        UserError: the files are damaged.
    """
    from kdfm_ray.models.backbone import load_network

    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        try:
            return load_network(folder)
        except ValueError as error:
            raise UserError(f"the run's network is damaged: {error}") from error


def calibrate(session: Session, run: FinishedRun) -> Calibration:
    """The temperature of a run: as kept in its folder, else fitted to its validation images.

    It is kept in ``calibration.json`` of the run folder, where that can be written.
    """
    model = run.model_hash()
    kept = _kept(run.path / CALIBRATION)
    if kept is not None and kept.model == model:
        return kept
    dataset, index = run.dataset(), run.val_index()
    if dataset is None or not len(index):
        why = (
            f"the run's images are not in its store ({run.store_root()}) any more"
            if len(index)
            else "the run has no validation images"
        )
        session.emit({"note": f"warning: {why}: confidence is not calibrated"})
        return Calibration(1.0, 0, None, None, model)
    found = session.call(
        _fit,
        run.model,
        run.store_root(),
        dataset.key,
        index,
        session.use_gpu,
        session.cpus_per_worker,
        gpu=True,
    )
    calibration = Calibration(*found, model)
    text = json.dumps(asdict(calibration), indent=1) + "\n"
    path = run.path / CALIBRATION
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        session.emit({"note": f"the temperature is not kept: {path}: {error.strerror}"})
    return calibration


def _kept(path: Path) -> Calibration | None:
    """What an earlier command kept; ``None`` where there is nothing, or it is damaged."""
    try:
        fields = json.loads(path.read_text())
        pairs = {name: tuple(fields[name]) for name in ("loss", "error")}
        return Calibration(**(fields | pairs))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _fit(
    model: Mapping[str, bytes],
    store_root: str,
    dataset_key: str,
    index: np.ndarray,
    use_gpu: bool,
    threads: int,
) -> tuple[float, int, tuple[float, float], tuple[float, float]]:
    import torch

    from kdfm_ray.models.numerics import Numerics
    from kdfm_ray.training.batches import ImageSource
    from kdfm_ray.training.calibration import fit_temperature, logits_of, loss_and_error
    from kdfm_ray.training.evaluate import predict

    torch.set_num_threads(threads)
    images = load_images(Store(store_root).get("dataset", dataset_key), "train")
    assert images is not None
    numerics = Numerics()  # float32, as predictions are
    source = ImageSource(images.images, torch.device("cuda" if use_gpu else "cpu"), keep="host")
    network = numerics.place(load_model(model), source.device)
    probs, _ = predict(network, source, index, batch_size=BATCH_SIZE, numerics=numerics)
    logits, truth = logits_of(probs.numpy()), images.labels[index]
    temperature = fit_temperature(logits, truth)
    before = loss_and_error(logits, truth, 1.0)
    after = loss_and_error(logits, truth, temperature)
    return temperature, len(index), (before[0], after[0]), (before[1], after[1])
