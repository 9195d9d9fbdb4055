"""Predictions of a network over many images, and accuracy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kdfm_ray.models.backbone import Network
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.training.batches import ImageSource


@torch.inference_mode()
def predict(
    network: Network,
    source: ImageSource,
    index: np.ndarray,
    *,
    batch_size: int,
    numerics: Numerics,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Class probabilities and embeddings of images, unaugmented, in eval mode.

    Args:
        network: on the source's device; its mode is put back afterwards.
        source: gives uint8 ``[n, C, H, W]`` by position.
        index: int64 ``[m]`` positions.
        batch_size: images per forward pass.
        numerics: of the forward pass; probabilities are float32 either way.
        temperature: what logits are divided by, see ``calibration``.

    Returns:
        Float32 CPU tensors ``[m, K]`` (rows sum to 1) and ``[m, D]``.
    """
    was_training = network.training
    network.eval()
    probs, embeddings = [], []
    for start in range(0, len(index), batch_size):
        images = source(index[start : start + batch_size])
        if start + batch_size < len(index):
            source.ahead(index[start + batch_size : start + 2 * batch_size])
        with numerics.autocast(source.device):
            output = network(images)
        # To pinned memory: a GPU goes on with the next batch meanwhile.
        found = (output.logits / temperature).softmax(dim=1)
        probs.append(found.to("cpu", non_blocking=True))
        embeddings.append(output.embeddings.to("cpu", non_blocking=True))
    if source.device.type == "cuda":
        torch.cuda.synchronize(source.device)
    network.train(was_training)
    if not probs:
        return torch.empty(0, 0), torch.empty(0, 0)
    return torch.cat(probs), torch.cat(embeddings)


def count_correct(
    network: Network,
    source: ImageSource,
    index: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    numerics: Numerics,
) -> int:
    """How many images at ``index`` get their true class; ``labels`` int64 ``[m]`` of those."""
    if len(index) == 0:
        return 0
    probs, _ = predict(network, source, index, batch_size=batch_size, numerics=numerics)
    return int((probs.argmax(dim=1).numpy() == labels).sum())
