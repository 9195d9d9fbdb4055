"""The paper's grid (arXiv 2309.05826, section 4): four data sets, four label counts.

    kdfm train cifar10_4000 --inner.loss sce

EfficientNet-B0 pretrained on ImageNet and the label counts are the paper's; steps, batch size,
image size and the optimizer's numbers are ours, since it does not give them. Sized for one GPU.
"""

from __future__ import annotations

from collections.abc import Callable

from kdfm_ray.config import Config, DataConfig, ModelConfig, TrainConfig

NUM_LABELS = (400, 1000, 2000, 4000)
# What the paper reports KD-FixMatch to add to FixMatch with 4,000 labels, in points.
GAIN_4000 = {"cifar10": 2.44, "svhn": 5.81, "cifar100": 1.99, "food101": 3.88}


def _preset(name: str, num_labels: int) -> Callable[[], Config]:
    def preset() -> Config:
        return Config(
            recipe="paper",
            data=DataConfig(name=name, num_labels=num_labels, num_val=5000),
            model=ModelConfig(name="efficientnet_b0", pretrained="yes"),
            train=TrainConfig(
                steps=20_000,
                batch_size=64,
                learning_rate=0.01,
                precision="bf16",
                memory_format="channels_last",
                compile="off",
                eval_every=2000,
            ),
        )

    gain = f"; the paper: +{GAIN_4000[name]} points over FixMatch" if num_labels == 4000 else ""
    preset.__name__ = f"{name}_{num_labels}"
    preset.__doc__ = f"""{name} with {num_labels:,} labels, the paper's backbone.

    Cost: not measured (needs a GPU)
    Result: not measured{gain}
    """
    return preset


PRESETS: dict[str, Callable[[], Config]] = {
    f"{name}_{num_labels}": _preset(name, num_labels)
    for name in GAIN_4000
    for num_labels in NUM_LABELS
}
