"""Export a run's network, and refuse a file that does not say what the network says."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kdfm_ray.config import ScaleConfig
from kdfm_ray.data.inputs import find_images, read_image
from kdfm_ray.export.card import make_card
from kdfm_ray.export.formats import SUFFIX, Format, opened, write
from kdfm_ray.export.graph import Classifier, metadata
from kdfm_ray.jobs.finished import Calibration, FinishedRun, calibrate, load_model
from kdfm_ray.jobs.prepare import load_images
from kdfm_ray.jobs.session import open_session
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.training.batches import ImageSource
from kdfm_ray.training.evaluate import predict
from kdfm_ray.types import Emit, RunFailed, UserError

CHECKED = 256  # images that the file and the network are compared on
TOLERANCE = 1e-4  # greatest absolute difference of a probability
BATCH = 64  # of the network's own pass; the file gets batches of another size


@dataclass(frozen=True)
class Exported:
    """An exported network.

    Attributes:
        file: the network.
        card: its model card.
        difference: greatest absolute difference of a probability from the float32 network's.
        checked: images that were compared.
        calibration: the temperature in the file.
    """

    file: Path
    card: Path
    difference: float
    checked: int
    calibration: Calibration


def export_run(
    run: FinishedRun,
    kind: Format,
    out: Path | None,
    emit: Emit,
    images: str | Path | Sequence[str | Path] | None = None,
) -> Exported:
    """Export a run's network; see ``Run.export``.

    Raises:
        UserError: unknown ending, or no images to check with.
        RunFailed: the file does not agree with the network, or cannot be written.
    """
    file = run.path / "export" / f"model{SUFFIX[kind]}" if out is None else out.expanduser()
    if file.suffix.lower() != SUFFIX[kind]:
        raise UserError(f"--out {file}: a file of the format {kind} ends in {SUFFIX[kind]}")
    if file.resolve().parent == run.path.resolve() and file.name in run.model:
        raise UserError(f"--out {file} is the run's own network: give another name")
    with open_session(ScaleConfig(num_workers=0, use_gpu="no"), emit) as session:
        calibration = calibrate(session, run)
    pixels = _images_to_check(run, images)
    classifier = Classifier(load_model(run.model), calibration.temperature).eval()
    expected = _expected(run, pixels, calibration.temperature)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=file.parent) as folder:
            draft = Path(folder, file.name)
            write(kind, classifier, metadata(run, classifier.network, calibration), draft)
            difference = _difference(kind, draft, pixels, expected)
            card = make_card(kind, draft, file.name, run, calibration, (difference, len(pixels)))
            Path(folder, "card.md").write_text(card)
            beside = file.with_name(f"{file.name}.md")
            draft.chmod(Path(folder, "card.md").stat().st_mode)  # some writers keep others out
            draft.replace(file)
            Path(folder, "card.md").replace(beside)
    except OSError as error:
        raise RunFailed(f"{file} cannot be written: {error.strerror or error}") from error
    return Exported(file, beside, difference, len(pixels), calibration)


def _images_to_check(
    run: FinishedRun, images: str | Path | Sequence[str | Path] | None
) -> np.ndarray:
    """Real images, uint8 ``[n, H, W, C]``: those given, else of the run, validation ones first."""
    size, _, channels = run.image_shape
    if images is not None:
        found = []
        for place in find_images(images).places:
            try:
                found.append(read_image(place, size, channels))
            except Exception as error:  # Pillow raises a dozen kinds
                raise UserError(f"--images: {place} cannot be read: {error}") from error
            if len(found) == CHECKED:
                break
        return np.stack(found)
    dataset = run.dataset()
    every = None if dataset is None else load_images(dataset, "train")
    if every is None:
        raise UserError(
            f"the run's images are not in its store ({run.store_root()}) any more, and an export "
            "is checked on real images: give some with --images"
        )
    first = run.val_index()
    others = np.setdiff1d(np.arange(min(len(every), CHECKED + len(first))), first)
    return every.images[np.concatenate([first, others])[:CHECKED]]


def _expected(run: FinishedRun, pixels: np.ndarray, temperature: float) -> np.ndarray:
    """What ``kdfm predict`` says, float32 ``[n, K]``."""
    numerics = Numerics()
    source = ImageSource(pixels, torch.device("cpu"))
    network = numerics.place(load_model(run.model), source.device)
    probs, _ = predict(
        network,
        source,
        np.arange(len(pixels)),
        batch_size=BATCH,
        numerics=numerics,
        temperature=temperature,
    )
    return probs.numpy()


def _difference(kind: Format, file: Path, pixels: np.ndarray, expected: np.ndarray) -> float:
    """The greatest one; a batch of one image and batches of odd sizes are among those compared.

    Raises:
        RunFailed: it is above the tolerance.
    """
    run = opened(kind, file)
    bounds = [0, 1, *range(1 + BATCH - 1, len(pixels), BATCH - 1), len(pixels)]
    parts = [run(pixels[a:b]) for a, b in itertools.pairwise(bounds) if a < b]
    difference = float(np.abs(np.concatenate(parts) - expected).max())
    if not difference <= TOLERANCE:  # NaN is no agreement
        raise RunFailed(
            f"the exported network differs from the run's by up to {difference:.1e} in a "
            f"probability, on {len(pixels)} images; {TOLERANCE:.0e} is allowed, and nothing was "
            "written: please report it, and try another format"
        )
    return difference
