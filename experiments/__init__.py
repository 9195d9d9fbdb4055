"""Presets: functions that return one complete config, each with what it costs and gave.

A preset's docstring says what it is in its first line, and has a line ``Cost:`` and a line
``Result:``. A result that was never measured says so.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from experiments import digits, fashion_mnist, paper, sweeps
from kdfm_ray.config import Config, describe_errors
from kdfm_ray.sweeps.space import Sweep
from kdfm_ray.types import UserError

Preset = Callable[[], Config]
PRESETS: dict[str, Preset] = digits.PRESETS | fashion_mnist.PRESETS | paper.PRESETS
SWEEPS: dict[str, Callable[[], Sweep]] = sweeps.SWEEPS


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
    if name in SWEEPS:
        raise UserError(f"{name} is a sweep, not a single run: `kdfm sweep {name}`")
    found: Preset = _find(name, PRESETS, "preset")
    return found


def _find(name: str, known: Mapping[str, Callable[[], Any]], kind: str) -> Callable[[], Any]:
    if name in known:
        return known[name]
    path, colon, function = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(Path(path).expanduser(), function)
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UserError(
        f"no {kind} {name!r}: {hint}`kdfm presets` lists all; a function of your own is given as "
        "path/to/file.py:function"
    )


def load_preset(name: str) -> Config:
    """The config of a preset.

    Raises:
        UserError: there is no such preset, or what it returns is no valid config.
    """
    config = _call(find_preset(name), name)
    if not isinstance(config, Config):
        raise UserError(
            f"the preset {name} returned a {type(config).__name__}: let it return a kdfm_ray.Config"
        )
    return config


def load_sweep(name: str) -> Sweep | Config:
    """The sweep of that name; or the config of a preset, of which a sweep can be made by flags.

    Raises:
        UserError: there is no such sweep or preset, or what it returns is neither.
    """
    found = _call(_find(name, SWEEPS | PRESETS, "sweep"), name)
    if not isinstance(found, Sweep | Config):
        raise UserError(
            f"{name} returned a {type(found).__name__}: let it return a kdfm_ray.Sweep (or a "
            "kdfm_ray.Config, with --grid flags)"
        )
    return found


def _call(function: Callable[[], Any], name: str) -> Any:
    try:
        return function()
    except ValidationError as error:
        model = Sweep if error.title == "Sweep" else Config
        mistakes = "; ".join(describe_errors(error, model))
        raise UserError(f"the preset {name} is not valid: {mistakes}") from error


def describe(name: str) -> About:
    """What, cost and result of a named preset or sweep."""
    lines = ((PRESETS | SWEEPS)[name].__doc__ or "").strip().splitlines()
    values = {}
    for line in lines:
        key, colon, value = line.strip().partition(": ")
        if colon:
            values[key] = value
    return About(lines[0], values.get("Cost", "not measured"), values.get("Result", "not measured"))


def _from_file(path: Path, function: str) -> Callable[[], Any]:
    if not path.is_file():
        raise UserError(f"no preset file {path}; give an existing file.py:function")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    preset: Any = getattr(module, function, None)
    if not callable(preset):
        names = [name for name, value in vars(module).items() if callable(value)]
        raise UserError(f"{path} has no function {function!r}; it has {', '.join(names)}")
    found: Callable[[], Any] = preset
    return found
