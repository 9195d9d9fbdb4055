"""What is known of a backbone's pretrained weights: image sizes, and whether they can be had."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from kdfm_ray.models.factory import WRN_NAMES
from kdfm_ray.models.weights import first_line

STRIDE = 32  # pixels of an image that become one of a convolutional network's last ones
SMALL = (32, 64)  # pixels a side of networks that start at random, and of the wrn_*
CPU_MOST = 96  # ours: an image at 224 pixels has over 5 times as many of them
PROBE_SECONDS = 10.0  # after which weights that are not cached count as out of reach


@dataclass(frozen=True)
class SizeLimits:
    """Image sizes that suit a backbone.

    Attributes:
        least, most: pixels a side.
        multiple: of so many pixels.
        why: the reason for ``most``, as part of a sentence.
    """

    least: int
    most: int
    multiple: int
    why: str


def size_limits(name: str, *, pretrained: bool, gpu: bool) -> SizeLimits:
    """Image sizes that suit a backbone, with or without pretrained weights, on a GPU or on CPUs."""
    if name in WRN_NAMES:
        return SizeLimits(*SMALL, 8, f"{name} is made for small images")
    cfg = timm.get_pretrained_cfg(name)
    own = cfg.input_size[-1]
    if cfg.fixed_input_size:  # transformers: their position embeddings are of that size
        return SizeLimits(own, own, 1, f"{name} is made for images of {own} pixels")
    least, most = SMALL
    why = "without pretrained weights"
    if pretrained:
        most = own // STRIDE * STRIDE
        why = f"{name} was trained with {own}"
        if not gpu and most > CPU_MOST:
            most, why = CPU_MOST, f"on CPUs; {why}"
    if cfg.min_input_size is not None:
        least = max(least, -(-cfg.min_input_size[-1] // STRIDE) * STRIDE)
    return SizeLimits(least, max(least, most), STRIDE, why)


def has_pretrained(name: str) -> bool:
    """Whether timm has weights of a backbone at all."""
    return bool(timm.is_model_pretrained(name))


def fetch_pretrained(name: str, seconds: float = PROBE_SECONDS) -> str:
    """Have timm's weights of a backbone in this machine's cache.

    Args:
        name: a backbone of which there are weights.
        seconds: to wait for an answer of the place that has them, where they are not cached.

    Returns:
        Why they cannot be had, as part of a sentence; nothing where they are there.
    """
    cfg = timm.get_pretrained_cfg(name)
    if not _is_cached(cfg) and (trouble := _within(seconds, lambda: _ask(cfg, seconds))):
        return trouble
    try:
        timm.create_model(name, pretrained=True)
    except Exception as error:  # network, proxy, disk and hub client fail with types of their own
        return first_line(error)
    return ""


def _is_cached(cfg: Any) -> bool:
    from huggingface_hub import try_to_load_from_cache

    if cfg.hf_hub_id:
        repository, _, revision = cfg.hf_hub_id.partition("@")
        return any(
            isinstance(try_to_load_from_cache(repository, file, revision=revision or None), str)
            for file in _files(cfg)
        )
    return Path(torch.hub.get_dir(), "checkpoints", Path(cfg.url).name).is_file()


def _files(cfg: Any) -> tuple[str, ...]:
    """Names that the file of weights may have."""
    named = cfg.hf_hub_filename
    return (named,) if named else ("model.safetensors", "pytorch_model.bin")


def _ask(cfg: Any, seconds: float) -> None:
    """Raise where the place that has the weights does not answer, or has them no more."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    if not cfg.hf_hub_id:
        urllib.request.urlopen(urllib.request.Request(cfg.url, method="HEAD"), timeout=seconds)
        return
    repository, _, revision = cfg.hf_hub_id.partition("@")
    *first, last = (hf_hub_url(repository, each, revision=revision or None) for each in _files(cfg))
    for url in first:
        try:
            get_hf_file_metadata(url, timeout=seconds)
            return
        except EntryNotFoundError:
            continue
    get_hf_file_metadata(last, timeout=seconds)


def _within(seconds: float, ask: Callable[[], None]) -> str:
    """What went wrong, or that it took too long: looking up a name knows no time-out."""
    trouble = [f"no answer within {seconds:g} s"]

    def work() -> None:
        try:
            ask()
            trouble[0] = ""
        except Exception as error:
            trouble[0] = first_line(error)

    thread = threading.Thread(target=work, name="kdfm-weights", daemon=True)
    thread.start()
    thread.join(timeout=seconds)
    return trouble[0]
