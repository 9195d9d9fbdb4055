"""timm backbones from a description that fits in JSON."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from kdfm_ray.models import wide_resnet  # importing it registers the wrn_* names with timm
from kdfm_ray.models.weights import first_line

WRN_NAMES = tuple(wide_resnet.default_cfgs)


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed, with a state dict, to build a network again; JSON-able by ``asdict``.

    Attributes:
        name: of timm's registry, ``wrn_*`` included.
        num_classes: k.
        image_channels: of the images given to the network, 1 or 3.
        image_size: height and width in pixels.
        in_channels: of the backbone; 3 with grey images means that grey is repeated.
        mean, std: per backbone channel, of pixels in 0..1.
        norm: ``batch`` is the backbone's own normalization; ``group`` is for ``wrn_*`` only.
        drop_rate: dropout between embeddings and classifier.
    """

    name: str
    num_classes: int
    image_channels: int
    image_size: int
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    norm: str = "batch"
    drop_rate: float = 0.0

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> NetworkSpec:
        """The inverse of ``dataclasses.asdict`` after a way through JSON."""
        return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})


def check_name(name: str, norm: str) -> None:
    """Raise ``ValueError`` for a backbone that timm does not know, or a norm that it lacks."""
    tagged = "." in name  # a name of certain weights: architecture.tag
    if not (name in timm.list_pretrained() if tagged else timm.is_model(name)):
        known = timm.list_pretrained() if tagged else timm.list_models()
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "it must be a name of timm's"
        raise ValueError(
            f"unknown model {name!r}; {hint} (timm.list_models() lists all; ours are "
            f"{', '.join(WRN_NAMES)})"
        )
    if norm not in ("batch", "group"):
        raise ValueError(f"unknown norm {norm!r}; choose batch or group")
    if norm == "group" and name not in WRN_NAMES:
        raise ValueError(
            f"norm group is for {', '.join(WRN_NAMES)}; {name} keeps its own: set norm to batch"
        )


def make_backbone(spec: NetworkSpec, seed: int, *, pretrained: bool) -> nn.Module:
    """timm's model; what is random in it depends on ``seed`` alone."""
    arguments: dict[str, Any] = {}
    if timm.get_pretrained_cfg(spec.name).fixed_input_size:  # transformers and their like
        arguments["img_size"] = spec.image_size
    if spec.name in WRN_NAMES:
        arguments["norm"] = spec.norm
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: nothing is drawn elsewhere
        model: nn.Module = timm.create_model(
            spec.name,
            pretrained=pretrained,
            num_classes=spec.num_classes,
            in_chans=spec.in_channels,
            **arguments,
        )
    return model


def download_backbone(spec: NetworkSpec, seed: int) -> nn.Module:
    """The backbone with timm's own weights; ``ValueError`` where they cannot be had."""
    if not timm.is_model_pretrained(spec.name):
        raise ValueError(
            f"there are no pretrained weights for {spec.name}; set model.pretrained to no, or to "
            "a file of your own"
        )
    try:
        return make_backbone(spec, seed, pretrained=True)
    except Exception as error:  # network, proxy, disk and hub client fail with types of their own
        raise ValueError(
            f"cannot fetch timm's weights for {spec.name} ({first_line(error)}); download them "
            "where there is a connection and set model.pretrained to that file, or to no"
        ) from error


def size_error(spec: NetworkSpec, reason: Exception | str, use: int | None = None) -> ValueError:
    """What to tell whoever gave an image size that the backbone cannot take."""
    if isinstance(reason, Exception):
        reason = first_line(reason)
    use = use or timm.get_pretrained_cfg(spec.name).input_size[-1]  # the size it was made for
    return ValueError(
        f"{spec.name} cannot take images of {spec.image_size}x{spec.image_size} ({reason}); set "
        f"data.image_size to {use}, or choose another model"
    )
