"""The content key of each stage: its own part of the config and the keys of what it reads.

A key covers what changes the result: with the resolved numerics (precision, memory layout,
compiled or not) and the stage's code version, without worker counts, folders and logging. Raise a
stage's version whenever its code gives another result for the same inputs.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdfm_ray.config import NO_FILE, Config, content_hash, hashed
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.types import Role, UserError

VERSIONS = {
    "dataset": 1,
    "split": 1,
    "baseline": 1,
    "outer": 1,
    "labels": 1,
    "trusted": 1,
    "inner": 1,
    "tested": 2,
    "evaluation": 3,
    "pictures": 1,
}
# Versions of the stages that look at networks, which gave the accuracies that those of VERSIONS
# give: results that were recorded with them stay valid. Where one is raised, add those of before,
# or empty this where accuracies are others.
EARLIER_FIGURES: tuple[dict[str, int], ...] = ({"tested": 1, "evaluation": 2},)
FIGURES = ("tested", "evaluation", "pictures")
# Stages that came when results had been recorded, which name VERSIONS.
LATER_VERSIONS = {"longer": 1}
TESTED = 2  # version of what is kept of the test beside accuracies; 2: calibrated confidence
OWN_IMAGES = 2  # version of how the user's own images are read; named sets have VERSIONS alone
# Precision, layout and compiling are in the key as they were resolved, the share as the updates.
NOT_IN_TRAINING = {"log_every", "precision", "memory_format", "compile", "outer_share"}


def stages_hashes(config: Config) -> list[str]:
    """Hashes of the code versions that give a run's results: those of now, then those of before.

    A stage that came later counts from its second version on, and where the run has it: so what
    was recorded before it came, and with its first version, stays valid. Own images
    (``OWN_IMAGES``) are not recorded, as config hashes do not know their contents.
    """
    used = {"longer": config.equal_compute}
    later = {name: n for name, n in LATER_VERSIONS.items() if n > 1 and used.get(name, True)}
    networks = {name: n for name, n in VERSIONS.items() if name not in FIGURES}
    before = [content_hash(networks | figures | later) for figures in EARLIER_FIGURES]
    return [content_hash(VERSIONS | later), *before]


@functools.cache
def weights_hash(pretrained: str) -> str:
    """``no``, ``yes``, or the content hash of the file of weights, wherever it lies.

    Raises:
        UserError: the file cannot be read.
    """
    if pretrained in NO_FILE:
        return pretrained
    try:
        with Path(pretrained).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"the pretrained weights {pretrained} cannot be read: {error.strerror or error}"
        ) from error


def recorded_hash(config: Config) -> str:
    """Name of a config where results are recorded: its hash, with weights by content.

    Raises:
        UserError: a file of weights that cannot be read.
    """
    pretrained = weights_hash(config.model.pretrained)
    model = config.model.model_copy(update={"pretrained": pretrained})
    return config.model_copy(update={"model": model}).hash()


def dataset_key(
    config: Config, fingerprint: str | None = None, image_size: int | None = None
) -> str:
    """Key of the decoded images.

    Args:
        config: the run's.
        fingerprint: of the user's own files; ``None`` for a named data set.
        image_size: of the user's own images, as it was chosen.
    """
    parts: dict[str, Any] = {"name": config.data.name, "fingerprint": fingerprint}
    parts["image_size"] = config.data.image_size if fingerprint is None else image_size
    if fingerprint is not None:
        parts["own_images"] = OWN_IMAGES
        parts |= hashed("data", {"max_pixels": config.data.max_pixels})
    return _key("dataset", parts)


def split_key(config: Config, dataset: str) -> str:
    """Key of the labeled / unlabeled / validation split."""
    data = config.data
    parts = {"labels": data.num_labels, "val": data.num_val, "seed": config.split_seed}
    return _key("split", parts | {"dataset": dataset})


def network_key(
    config: Config,
    role: Role,
    split: str,
    numerics: Numerics,
    *,
    weights: str,
    trusted: str | None = None,
    outer: str | None = None,
) -> str:
    """Key of a trained network.

    Args:
        config: the run's.
        role: which network.
        split: key of the split (which covers the images).
        numerics: as resolved.
        weights: ``no``, ``yes`` (timm's own), or the hash of the file of pretrained weights.
        trusted: key of the trusted subset, for the inner network.
        outer: key of the outer network, where the inner one starts from its weights.
    """
    parts: dict[str, Any] = {
        "seed": config.seed,
        "split": split,
        "numerics": asdict(numerics),
        "flip": config.data.flip,
        "weights": weights,
        "model": config.model.model_dump(mode="json", exclude={"pretrained"}),
        "train": config.trained_as(role).train.model_dump(mode="json", exclude=NOT_IN_TRAINING),
        "shift": config.augment.shift,
    }
    if role != "baseline":
        parts["augment"] = config.augment.model_dump(mode="json")
        parts["fixmatch"] = hashed("fixmatch", config.fixmatch.model_dump(mode="json"))
    if role == "inner":
        unused = {"steps"} if config.inner.trusted_noise else {"steps", "trusted_noise"}
        parts["inner"] = hashed("inner", config.inner.model_dump(mode="json", exclude=unused))
        parts["trusted"] = trusted
        parts["outer"] = outer
    return _key(role, parts)


def labels_key(outer: str, numerics: Numerics) -> str:
    """Key of the pseudo labels of an outer network."""
    return _key("labels", {"outer": outer, "numerics": asdict(numerics)})


def trusted_key(config: Config, labels: str) -> str:
    """Key of the trusted subset."""
    select = hashed("select", config.select.model_dump(mode="json"))
    return _key("trusted", {"labels": labels, "seed": config.seed, "select": select})


def tested_key(dataset: str, network: str, numerics: Numerics) -> str:
    """Key of the test figures of one network, whose own key covers the split."""
    parts = {"dataset": dataset, "network": network, "numerics": asdict(numerics)}
    return _key("tested", parts | {"figures": TESTED})


def evaluation_key(networks: Mapping[str, str]) -> str:
    """Key of the test figures of some networks (role -> key)."""
    return _key("evaluation", {**networks, "figures": TESTED})


def pictures_key(config: Config, labels: str, trusted: str | None, inner: str | None) -> str:
    """Key of the pictures of a report; ``None`` for stages that were not reached."""
    parts = {"labels": labels, "trusted": trusted, "inner": inner, "seed": config.seed}
    # Of both thresholds: without a trusted subset its key does not cover them.
    taus = {"tau_select": config.select.tau_select, "tau_inner": config.inner.tau_inner}
    return _key("pictures", parts | taus)


def _key(stage: str, parts: dict[str, Any]) -> str:
    return content_hash({"stage": stage, "version": (VERSIONS | LATER_VERSIONS)[stage]} | parts)
