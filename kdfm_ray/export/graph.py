"""What is exported: uint8 images in, calibrated probabilities out; and what a user must know.

Legend: n images of h x w pixels with c channels, k classes.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch
from torch import Tensor, nn

from kdfm_ray.jobs.finished import Calibration, FinishedRun
from kdfm_ray.models.backbone import Network, build
from kdfm_ray.models.factory import NetworkSpec

BACKBONE = "backbone."  # what names of weights begin with in a ``Network``; timm's have no prefix
RESIZE = (
    "decode the file; a JPEG by Pillow's draft('RGB', (2 S, 2 S)), at 1/2, 1/4 or 1/8 of its size; "
    "no animations; 16-bit grey by its upper 8 bits; alpha on white; RGB; then the center square "
    "of the shorter side resized to S x S in one step by Pillow's bilinear filter (antialiased): "
    "resize((S, S), Image.Resampling.BILINEAR, box=square); then the EXIF orientation is undone"
)


class Classifier(nn.Module):
    """Normalization, network, temperature and softmax in one graph."""

    temperature: Tensor

    def __init__(self, network: Network, temperature: float) -> None:
        """Wrap a network in eval mode."""
        super().__init__()
        self.network = network.eval()
        self.register_buffer("temperature", torch.tensor(temperature), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 ``[n, h, w, c]`` to probabilities float32 ``[n, k]``."""
        logits = self.network(images.permute(0, 3, 1, 2)).logits
        return (logits / self.temperature).softmax(dim=1)


def metadata(run: FinishedRun, network: Network, calibration: Calibration) -> dict[str, str]:
    """Texts that go into the file; those of structure as JSON."""
    height, width, channels = run.image_shape
    color = "red, green, blue"
    grey = "1 channel: the mean of red, green and blue, rounded"
    values: dict[str, Any] = {
        "classes": run.classes,
        "input": {
            "name": "images",
            "dtype": "uint8",
            "shape": ["n", height, width, channels],
            "channels": color if channels == 3 else grey,
        },
        "output": {"name": "probs", "dtype": "float32", "shape": ["n", len(run.classes)]},
        "resize": {"size": height, "recipe": RESIZE},
        "temperature": calibration.temperature,
        "calibration_images": calibration.images,
        "network": dataclasses.asdict(network.spec),
        "weights_sha256": calibration.model,
        "config_hash": run.report.get("config_hash"),
        "kdfm_ray": run.report.get("versions", {}).get("kdfm_ray"),
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
        if value is not None
    }


def weights(network: Network) -> dict[str, Tensor]:
    """The state dict under timm's own names."""
    return {
        name.removeprefix(BACKBONE): value.contiguous()
        for name, value in network.state_dict().items()
    }


def rebuild(state: dict[str, Tensor], texts: dict[str, str]) -> Classifier:
    """The classifier of ``weights`` and ``metadata``.

    Raises:
        ValueError: they do not belong together.
    """
    try:
        spec = NetworkSpec.from_json(json.loads(texts["network"]))
        temperature = float(texts["temperature"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its metadata do not describe a network of kdfm_ray: {error}") from error
    network = build(spec, {f"{BACKBONE}{name}": value for name, value in state.items()})
    return Classifier(network, temperature)
