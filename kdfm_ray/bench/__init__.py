"""`kdfm bench`: how fast the parts are on this machine, on real pictures, as JSON objects."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Name of the part -> the class of its flags; imported when asked for, as it brings torch along.
BENCHMARKS = {
    "step": "StepBench",
    "augment": "AugmentBench",
    "label": "LabelBench",
    "select": "SelectBench",
}


def load(name: str) -> Any:
    """The class of a benchmark: a dataclass of flags with ``run()`` and ``json``."""
    return getattr(import_module(f"kdfm_ray.bench.{name}"), BENCHMARKS[name])
