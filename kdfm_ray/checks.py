"""What a config can be told without images or Ray: names, folders and files that do not exist."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdfm_ray.config import NO_FILE
from kdfm_ray.types import UserError


def find_problems(values: Mapping[str, Any]) -> list[str]:
    """Names, folders and files in ``values`` that do not exist: found without images or Ray."""
    from kdfm_ray.data import catalog, sources
    from kdfm_ray.models import factory

    problems: list[str] = []
    data, model = values["data"], values["model"]
    if not isinstance(data, dict) or not isinstance(model, dict):
        return problems  # the config says what is wrong with that
    try:
        if isinstance(data["name"], str):
            catalog.check_name(data["name"])
    except UserError as error:
        problems.append(f"data.name: {error}")
    try:
        if isinstance(model["name"], str):
            factory.check_name(model["name"], str(model["norm"]))
    except ValueError as error:
        problems.append(f"model.name: {error}")
    for name in ("labeled", "unlabeled", "test"):
        place = data[name]
        if isinstance(place, str | Path):
            problem = sources.check_place(str(place), pattern=name == "unlabeled")
            problems += [f"data.{name} = {place}: {problem}"] if problem else []
    pretrained = model["pretrained"]
    is_file = isinstance(pretrained, str) and pretrained not in NO_FILE
    if is_file and not Path(pretrained).expanduser().is_file():
        problems.append(
            f"model.pretrained = {pretrained}: no such file; give auto, no, yes, or a file "
            "of weights"
        )
    return problems
