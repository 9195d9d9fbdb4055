"""Weights from a local file, and their way into a timm backbone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

State = dict[str, Tensor]

NESTINGS = ("state_dict", "model")  # where training programs put the weights inside a checkpoint
PREFIXES = ("module.", "_orig_mod.", "backbone.")  # of DDP, torch.compile and our own networks
NAMED = 4  # tensors that an error message lists


def read_weights(path: str | Path) -> State:
    """Read ``*.safetensors``, or any other file as a torch checkpoint (tensors only, no code).

    Raises:
        ValueError: no such file, unreadable, or no tensors inside.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights file at {path}; give an existing file, or yes, or no")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way inside the parsers
        raise ValueError(
            f"cannot read weights from {path} ({first_line(error)}); it must be a .safetensors "
            "file, or a torch file that torch.load(weights_only=True) reads"
        ) from error
    for nesting in NESTINGS:
        if isinstance(content, dict) and isinstance(content.get(nesting), dict):
            content = content[nesting]
    entries = content.items() if isinstance(content, dict) else ()
    state = {_strip(str(key)): value for key, value in entries if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no weights: it must map parameter names to tensors")
    return state


def fit_weights(backbone: nn.Module, state: State, source: str) -> tuple[str, ...]:
    """Load ``state`` into ``backbone``; a classifier of other classes keeps its random start.

    Returns:
        Notes on what was not taken over; empty when everything was.

    Raises:
        ValueError: tensors are missing, too many, or of another shape; names some of them.
    """
    state = _translate(backbone, state)
    cfg: Any = backbone.pretrained_cfg
    own = backbone.state_dict()
    notes: tuple[str, ...] = ()
    heads = [f"{name}." for name in _names(cfg.get("classifier"))]
    head = {key for key in own if any(key.startswith(prefix) for prefix in heads)}
    if any(key not in state or state[key].shape != own[key].shape for key in head):
        state = {key: value for key, value in state.items() if key not in head}
        notes = (
            f"{source}: its classifier was for other classes, so this one starts at random: as it "
            "should, unless those weights were of your classes",
        )

    counters = {key for key in own if key.endswith("num_batches_tracked")}  # old files lack them
    problems = [f"lacks {key}" for key in own if key not in state.keys() | head | counters]
    problems += [f"has an unknown {key}" for key in state if key not in own]
    problems += [
        f"has {key} as {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise ValueError(
            f"the weights in {source} do not fit {cfg['architecture']}: "
            f"the file {'; '.join(problems[:NAMED])}{more}; choose the model that they are from"
        )
    backbone.load_state_dict(state, strict=False)
    return notes


def stem_channels(state: State, first_conv: str | tuple[str, ...] | None) -> int | None:
    """How many image channels the first convolution of ``state`` reads; ``None`` if not told."""
    stem = state.get(f"{_names(first_conv)[0]}.weight") if first_conv else None
    return stem.shape[1] if stem is not None and stem.ndim == 4 else None


def _translate(backbone: nn.Module, state: State) -> State:
    """Apply timm's own rules for this kind of backbone.

    They rename foreign checkpoints and resize position embeddings to the image size at hand.
    """
    module = sys.modules[type(backbone).__module__]
    translate = getattr(module, "checkpoint_filter_fn", None)
    if translate is None:
        return state
    try:
        translated: State = translate(dict(state), backbone)
    except Exception:  # rules meet weights of another network: the comparison will say what is odd
        return state
    return translated


def _names(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _strip(key: str) -> str:
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
