"""Presets: functions that return one complete config, each with what it costs and gave.

A preset's docstring says what it is in its first line, and has a line ``Cost:`` and a line
``Result:``. A result that was never measured says so.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from experiments import digits, fashion_mnist, paper
from kdfm_ray.config import Config, describe_errors
from kdfm_ray.types import UserError

Preset = Callable[[], Config]
PRESETS: dict[str, Preset] = digits.PRESETS | fashion_mnist.PRESETS | paper.PRESETS


@dataclass(frozen=True)
class About:
    """What a preset's docstring says of it."""

    what: str
    cost: str
    result: str


def find_preset(name: str) -> Preset:
    """A preset by name, or ``path/to/file.py:function``.

    Raises:
        UserError: there is none; names the closest, or what is wrong with the file.
    """
    if name in PRESETS:
        return PRESETS[name]
    path, colon, function = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(Path(path).expanduser(), function)
    close = difflib.get_close_matches(name, PRESETS, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UserError(
        f"no preset {name!r}: {hint}`kdfm presets` lists all; a function of your own is given as "
        "path/to/file.py:function"
    )


def load_preset(name: str) -> Config:
    """The config of a preset.

    Raises:
        UserError: there is no such preset, or what it returns is no valid config.
    """
    try:
        config = find_preset(name)()
    except ValidationError as error:
        mistakes = "; ".join(describe_errors(error))
        raise UserError(f"the preset {name} is no valid config: {mistakes}") from error
    if not isinstance(config, Config):
        raise UserError(
            f"the preset {name} returned a {type(config).__name__}: let it return a kdfm_ray.Config"
        )
    return config


def describe(name: str) -> About:
    """What, cost and result of a named preset."""
    lines = (PRESETS[name].__doc__ or "").strip().splitlines()
    values = {}
    for line in lines:
        key, colon, value = line.strip().partition(": ")
        if colon:
            values[key] = value
    return About(lines[0], values.get("Cost", "not measured"), values.get("Result", "not measured"))


def _from_file(path: Path, function: str) -> Preset:
    if not path.is_file():
        raise UserError(f"no preset file {path}; give an existing file.py:function")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    preset = getattr(module, function, None)
    if not callable(preset):
        names = [name for name, value in vars(module).items() if callable(value)]
        raise UserError(f"{path} has no function {function!r}; it has {', '.join(names)}")
    return preset
