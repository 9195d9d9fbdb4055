"""Versions and hardware: what a number needs beside it to be had again."""

from __future__ import annotations

import os
import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kdfm_ray.config import DEFAULT_RECIPE, Config, default_values, flag_text
from kdfm_ray.jobs.session import cpu_name
from kdfm_ray.report.run_folder import flat

PACKAGES = (
    "kdfm_ray",
    "ray",
    "torch",
    "torchvision",
    "timm",
    "faiss-gpu",
    "faiss-cpu",
    "scikit-learn",
    "numpy",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and GPUs of the driver's machine."""
    import psutil
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
        "system": platform.platform(terse=True),
    }


def rerun_command(config: Config) -> str:
    """The ``kdfm train`` command with every flag that is not its default, for a shell."""
    # With these data and this recipe, on which defaults depend; but both are always named.
    usual = flat(Config(data=config.data, recipe=config.recipe).model_dump(mode="json"))
    usual |= flat({"data": default_values()["data"], "recipe": DEFAULT_RECIPE})
    words = ["kdfm", "train"]
    for name, value in flat(config.model_dump(mode="json")).items():
        if flag_text(value) != flag_text(usual[name]):
            words += [f"--{name.replace('_', '-')}", flag_text(value)]
    return shlex.join(words)
