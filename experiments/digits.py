"""scikit-learn's digits, upsampled to 32 x 32: real images that need no download.

kdfm train digits
"""

from __future__ import annotations

from collections.abc import Callable

from kdfm_ray.config import Config, DataConfig, ModelConfig, TrainConfig


def digits() -> Config:
    """Digits with 10 labels per class: the demo.

    Cost: about 2 minutes on 2 CPU cores
    Result: not measured
    """
    return Config(
        data=DataConfig(name="digits", num_labels=100),
        model=ModelConfig(name="wrn_10_2"),
        train=TrainConfig(steps=200, eval_every=100, log_every=5, precision="bf16"),
    )


PRESETS: dict[str, Callable[[], Config]] = {"digits": digits}
