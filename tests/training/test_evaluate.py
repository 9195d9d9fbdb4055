"""Predictions: the source is told what comes next, and nothing of it changes a number."""

import numpy as np
import torch

from kdfm_ray.models.backbone import create_network
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.training.batches import ImageSource
from kdfm_ray.training.evaluate import predict


class Told(ImageSource):
    """Notes what it was asked for and told of, in order."""

    def __init__(self, images):
        super().__init__(images, torch.device("cpu"))
        self.notes = []

    def __call__(self, index):
        self.notes.append(("read", index.tolist()))
        return super().__call__(index)

    def ahead(self, index):
        self.notes.append(("ahead", index.tolist()))


def test_the_next_slice_is_read_ahead_and_none_after_the_last():
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    source = Told(images)
    network = create_network("wrn_10_2", num_classes=4, image_channels=3, image_size=8, seed=0)
    index = np.array([6, 1, 2, 0, 4])
    probs, embeddings = predict(network, source, index, batch_size=2, numerics=Numerics())
    assert source.notes == [
        ("read", [6, 1]),
        ("ahead", [2, 0]),
        ("read", [2, 0]),
        ("ahead", [4]),
        ("read", [4]),
    ]
    assert probs.shape == (5, 4)
    with torch.inference_mode():
        output = network.eval()(source(index))
    torch.testing.assert_close(probs, output.logits.softmax(dim=1))
    torch.testing.assert_close(embeddings, output.embeddings)
