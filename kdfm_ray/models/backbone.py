"""Networks: a timm backbone that takes uint8 images and gives logits and embeddings.

Legend: n images, c channels (1 or 3), h x w pixels, d embedding size, k classes.

    images uint8 [n, c, h, w] -> normalize -> backbone -> embeddings [n, d] -> logits [n, k]
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdfm_ray.models.factory import (
    NetworkSpec,
    check_name,
    download_backbone,
    make_backbone,
    size_error,
)
from kdfm_ray.models.weights import fit_weights, read_weights, stem_channels


class Output(NamedTuple):
    """What a network says about a batch, in float32 whatever it computed in."""

    logits: Float[Tensor, "n k"]
    embeddings: Float[Tensor, "n d"]


class Network(nn.Module):
    """A timm backbone with the image normalization inside; make one by ``create_network``.

    Attributes:
        spec: how to build it again.
        notes: what a reader of the run should know about its starting weights.
    """

    backbone: Any  # a timm model: forward_features, forward_head, get_classifier
    scale: Tensor
    shift: Tensor

    def __init__(self, spec: NetworkSpec, backbone: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.notes: tuple[str, ...] = ()
        self.backbone = backbone
        self.dropout = nn.Dropout(spec.drop_rate)
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        # (x / 255 - mean) / std as one product and one sum; rebuilt from the spec, so not saved
        self.register_buffer("scale", (1 / (255 * std)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(1, -1, 1, 1), persistent=False)

    def normalize(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h w"]:
        """``(images / 255 - mean) / std``, with as many channels as the backbone reads."""
        assert images.shape[1] == self.spec.image_channels, images.shape
        # [n, 1, h, w] times [1, 3, 1, 1] repeats a grey channel where the backbone has three
        return images.float() * self.scale + self.shift

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> Output:
        return self.head(self.backbone.forward_features(self.normalize(images)))

    def head(self, features: Tensor) -> Output:
        """Pool what the backbone saw, and classify it."""
        embeddings = self.backbone.forward_head(features, pre_logits=True)
        classifier = self.backbone.get_classifier()
        inputs = self.dropout(embeddings)
        if isinstance(classifier, nn.Conv2d):  # some families classify by a 1x1 convolution
            inputs = inputs[:, :, None, None]
        logits = classifier(inputs).flatten(1)
        return Output(logits.float(), embeddings.float())


def create_network(
    name: str,
    *,
    num_classes: int,
    image_channels: int,
    image_size: int,
    pretrained: str = "no",
    drop_rate: float = 0.0,
    norm: str = "batch",
    seed: int,
) -> Network:
    """Make a network on the CPU, in train mode; its random weights depend on ``seed`` alone.

    Args:
        name: any timm backbone with pooled features, or a ``wrn_*``.
        num_classes: k.
        image_channels: 1 or 3. Pretrained backbones read three: grey is repeated for them.
        image_size: height and width in pixels.
        pretrained: ``no``; ``yes`` for timm's own weights (downloaded); else a file.
        drop_rate: dropout between embeddings and classifier.
        norm: ``batch`` (the backbone's own), or ``group`` for ``wrn_*``.
        seed: of the initialization; torch's global generators are left as they were.

    Raises:
        ValueError: unknown name; a norm that the backbone does not know; weights that are missing,
            unreadable or do not fit; an image size that the backbone cannot take.
    """
    assert image_channels in (1, 3), image_channels
    check_name(name, norm)
    cfg = timm.get_pretrained_cfg(name)
    in_channels = image_channels
    state = None
    if pretrained == "yes":
        in_channels = 3
    elif pretrained != "no":
        state = read_weights(pretrained)
        in_channels = 1 if stem_channels(state, cfg.first_conv) == image_channels == 1 else 3

    color = in_channels == 3
    spec = NetworkSpec(
        name=name,
        num_classes=num_classes,
        image_channels=image_channels,
        image_size=image_size,
        in_channels=in_channels,
        mean=tuple(cfg.mean) if color else (0.5,),
        std=tuple(cfg.std) if color else (0.5,),
        norm=norm,
        drop_rate=drop_rate,
    )
    network = _construct(spec, seed)
    _check_takes_images(network)
    if pretrained == "yes":
        network.backbone = download_backbone(spec, seed)
    elif state is not None:
        network.notes = fit_weights(network.backbone, state, pretrained)
    return network


def build(spec: NetworkSpec, state: dict[str, Tensor]) -> Network:
    """Build a network again from its spec and its ``state_dict()``; on the CPU, in eval mode.

    Raises:
        ValueError: the state dict is not one of this spec.
    """
    network = _construct(spec, seed=0)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights are not those of this {spec.name}: {error}") from error
    return network.eval()


def save_network(
    network: Network, folder: str | Path, extra: Mapping[str, Any] | None = None
) -> None:
    """Write ``model.safetensors`` and ``model.json`` (key ``network``, beside ``extra``'s keys)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    content = {"network": dataclasses.asdict(network.spec), **(extra or {})}
    (folder / "model.json").write_text(json.dumps(content, indent=2) + "\n")


def load_network(folder: str | Path) -> Network:
    """Read what ``save_network`` wrote; on the CPU, in eval mode. Runs no code from the files.

    Raises:
        ValueError: a file is missing or damaged.
    """
    folder = Path(folder)
    for name in ("model.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"no {name} in {folder}; give a folder that a finished run wrote")
    try:
        fields = json.loads((folder / "model.json").read_text())["network"]
        spec = NetworkSpec.from_json(fields)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'model.json'} does not describe a network: {error}") from error
    try:
        state = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder / 'model.safetensors'} is damaged: {error}") from error
    return build(spec, state)


def _construct(spec: NetworkSpec, seed: int) -> Network:
    """A network with random weights."""
    try:
        return Network(spec, make_backbone(spec, seed, pretrained=False))
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise size_error(spec, error) from error


def _check_takes_images(network: Network) -> None:
    """Send two images through, so that an impossible size or head is found before the training."""
    spec, backbone = network.spec, network.backbone
    patch = _patch_size(backbone)
    if spec.image_size % patch:
        larger = spec.image_size + patch - spec.image_size % patch
        raise size_error(spec, f"it cuts them into patches of {patch}", use=larger)
    size = (2, spec.image_channels, spec.image_size, spec.image_size)
    images = torch.arange(math.prod(size)).remainder(251).to(torch.uint8).view(size)
    network.eval()
    with torch.no_grad():
        try:
            features = backbone.forward_features(network.normalize(images))
        except Exception as error:  # every backbone fails in its own way
            raise size_error(spec, error) from error
        try:
            logits = network.head(features).logits
            plain = torch.allclose(logits, backbone.forward_head(features), rtol=1e-3, atol=1e-4)
        except (RuntimeError, TypeError, IndexError, NotImplementedError):
            plain = False
    if not plain:
        raise ValueError(
            f"{spec.name} does not classify by one layer over pooled features, which are the "
            "embeddings that selection needs; choose another model, for example efficientnet_b0"
        )
    network.train()


def _patch_size(backbone: Any) -> int:
    """Pixels along a patch where patches lie side by side; torch would drop what is over."""
    cut = getattr(getattr(backbone, "patch_embed", None), "proj", None)
    if isinstance(cut, nn.Conv2d) and cut.stride == cut.kernel_size:
        return cut.stride[0]
    return 1
