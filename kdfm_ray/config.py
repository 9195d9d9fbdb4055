"""Every choice of a run, in frozen models that refuse unknown keys.

Which values are the papers' and which are ours is said in the README. "global" means over all
workers together. Counts of images are images before augmentation.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from kdfm_ray.types import Role, UserError

T = TypeVar("T")
# A field that may be left open (None) for images of one's own, until the data stage has read them
# and ``resolve.fill`` has filled it; typed as filled, since all stages after that one see it so.
if TYPE_CHECKING:
    Open = Annotated[T, "may be left open"]
else:
    Open = T | None

OPEN: Any = None

Precision = Literal["fp32", "bf16"]
MemoryFormat = Literal["channels_last", "contiguous"]
Keep = Literal["auto", "gpu", "host"]


class Section(BaseModel):
    """A part of the configuration: frozen, no unknown keys, every field described."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """Where the images come from and how they are split."""

    name: str | None = Field(
        None, description="named data set (see `kdfm presets`), or give folders"
    )
    labeled: str | None = Field(
        None,
        description="folder with one subfolder of images per class, or CSV / Parquet file of "
        "path,label; may be a URI",
    )
    unlabeled: str | None = Field(
        None,
        description="folder of images without labels, any depth, or glob, or CSV / Parquet file "
        "of path; may be a URI",
    )
    test: str | None = Field(None, description="test images, given like labeled")
    max_skipped: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of your own images that may be unreadable and are skipped; above it "
        "the run stops",
    )
    max_pixels: int = Field(
        64_000_000,
        ge=1,
        description="your own images of more pixels are skipped; of JPEGs, which are read at a "
        "smaller scale, the pixels at that scale; an image takes 8 to 9 bytes of memory a pixel",
    )
    root: Path = Field(
        Path("~/.cache/kdfm_ray/data"),
        description="where named data sets are, or are downloaded to",
    )
    num_labels: int | None = Field(
        None,
        ge=1,
        description="labeled images to draw, class-balanced; none: all that have a label",
    )
    num_val: int | None = Field(
        None,
        ge=0,
        description="validation images, taken out of training first; none: 10 %, at most 5,000",
    )
    split_seed: int | None = Field(
        None, ge=0, description="seed of the split; none: the same as `seed`"
    )
    image_size: int | None = Field(
        None,
        ge=8,
        le=1024,
        description="pixels a side; none: the data set's own; of your own images the median "
        "shorter side, from 32 to 64, or with pretrained weights to 96 on CPUs and to the "
        "network's own input size on GPUs",
    )
    device: Keep = Field(
        "auto", description="where GPUs read images; auto: from their own memory where they fit"
    )
    flip: Literal["auto", "yes", "no"] = Field(
        "auto", description="horizontal flips in the weak view; auto: as the data set says"
    )

    @field_validator("labeled", "unlabeled", "test", mode="before")
    @classmethod
    def _place_as_text(cls, place: Any) -> Any:
        return str(place) if isinstance(place, Path) else place

    @field_validator("labeled", "unlabeled", "test")
    @classmethod
    def _holds_no_secret(cls, place: str | None) -> str | None:
        if place is not None and holds_secret(place):
            raise ValueError(SECRET_IN_URI)
        return place

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        folders = {"labeled": self.labeled, "unlabeled": self.unlabeled, "test": self.test}
        given = [f"data.{name}" for name, path in folders.items() if path is not None]
        if self.name is not None and given:
            raise ValueError(f"give data.name or folders, not both (got data.name and {given})")
        if self.name is None and self.labeled is None:
            raise ValueError(
                "no data: give data.name (a named data set) or data.labeled (a folder)"
            )
        return self


class ModelConfig(Section):
    """The student neural network, the same for the outer and the inner one."""

    name: str = Field(
        "efficientnet_b0", description="any timm backbone, or wrn_{10,16,28}_2, wrn_28_8"
    )
    pretrained: str = Field(
        "auto",
        description="no, yes (timm's own weights), or a .safetensors / .pth file; auto: yes for "
        "your own images where the weights can be had, no for named data sets",
    )
    norm: Literal["batch", "group"] = Field(
        "batch", description="normalization of the wrn_* networks; others keep their own"
    )
    drop_rate: float = Field(0.0, ge=0, lt=1, description="dropout before the classifier")


class TrainConfig(Section):
    """One SNN's training; outer, inner and labeled-only alike."""

    steps: Open[int] = Field(
        OPEN,
        ge=1,
        description="optimizer updates of each SNN; none: 2,000; with your own images 20 passes "
        "over them, from 500 to 20,000",
    )
    outer_share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of the updates of outer and inner network together, 2 x steps, that the "
        "outer one has; where inner.steps is given, that counts, and the outer one has steps",
    )
    batch_size: int = Field(32, ge=1, description="labeled images per update (B), global")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd has Nesterov momentum")
    learning_rate: Open[float] = Field(
        OPEN,
        gt=0,
        description="peak; decays as cos(7 pi t / 16 T); none: 0.03; with your own images by "
        "optimizer and starting weights",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(5e-4, ge=0, description="not on norms and biases")
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="lr factor per layer from the top; none: the same everywhere"
    )
    warmup_steps: int = Field(0, ge=0, description="updates of linear lr warm-up")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of the averaged weights and buffers")
    ema_warmup: bool = Field(True, description="start the average short and lengthen it")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: what a short measurement finds fastest; softmax is always fp32"
    )
    memory_format: Literal["auto", "channels_last", "contiguous"] = Field(
        "auto", description="layout of weights and images; auto: measured together with precision"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile; auto: off, but for runs of hours whose precision or layout is "
        "auto, too, where it was measured to be faster",
    )
    norm_sync: Literal["local", "global"] = Field(
        "local",
        description="batch-norm statistics of a worker, or of all (SyncBatchNorm, GPUs only)",
    )
    eval_every: Open[int] = Field(
        OPEN,
        ge=1,
        description="updates between validations of the EMA network; none: 500; with your own "
        "images a tenth of the steps",
    )
    log_every: Open[int] = Field(
        OPEN,
        ge=1,
        description="updates that one line of metrics covers; none: 20; with your own images a "
        "hundredth of the steps",
    )


class FixMatchConfig(Section):
    """FixMatch's own numbers (arXiv 2001.07685)."""

    mu: int = Field(7, ge=1, description="unlabeled images per labeled one in an update")
    tau: float = Field(0.95, ge=0, le=1, description="confidence from which a pseudo label counts")
    lambda_u: float = Field(1.0, ge=0, description="weight of the unlabeled loss")
    strong_views: Literal["all", "masked"] = Field(
        "all",
        description="masked: images without an unlabeled loss skip the strong pass; faster, but "
        "another algorithm where batch norm sees fewer images",
    )
    align: Literal["none", "labeled", "uniform"] = Field(
        "none",
        description="distribution alignment: pseudo labels in the proportions of the labeled "
        "images, or of equal classes; for images whose classes are not equally many",
    )
    thresholds: Literal["fixed", "adaptive"] = Field(
        "fixed",
        description="adaptive: FreeMatch's, which rise with the network's confidence and are lower "
        "for classes that it predicts less; tau and tau_inner are then the most they can be",
    )


class AugmentConfig(Section):
    """Weak view: shift and flip. Strong view: that, RandAugment, Cutout."""

    shift: float = Field(0.125, ge=0, le=0.5, description="largest shift, share of the side")
    num_ops: int = Field(2, ge=0, le=8, description="RandAugment operations per strong view")
    op_prob: float = Field(
        0.5, ge=0, le=1, description="probability that a drawn operation is done"
    )
    cutout: float = Field(0.5, ge=0, le=1, description="largest cutout square, share of the side")


class LabelConfig(Section):
    """The pass that labels every unlabeled image."""

    batch_size: int = Field(1024, ge=1, description="images per forward pass of a labeling actor")
    num_actors: int | None = Field(
        None, ge=1, description="none: as many as training workers, times those that share a GPU"
    )
    gpus_per_actor: float = Field(
        1.0, gt=0, le=1, description="0.5: two labeling actors share a GPU, where there is one"
    )


class SelectConfig(Section):
    """The trusted subset: confidence, then clusters that agree."""

    tau_select: float = Field(0.80, ge=0, le=1, description="confidence an image needs")
    clusterer: Literal[
        "dec", "idec", "kmeans", "gmm", "spectral", "dbscan", "hdbscan", "spread", "none"
    ] = Field(
        "dec",
        description="spread: labels spread over a neighbor graph; none: confidence alone",
    )
    num_clusters: int | None = Field(None, ge=1, description="none: the number of classes")
    labeled_weight: float = Field(
        5.0, ge=0, description="votes of a labeled image when clusters are matched to classes"
    )
    sample_size: int = Field(
        200_000, ge=100, description="fit the clusterer on at most so many images, assign the rest"
    )
    latent_dim: int = Field(10, ge=1, description="DEC: size of the autoencoder's code")
    hidden_dims: tuple[PositiveInt, ...] = Field(
        (256, 128), description="DEC: widths of the encoder"
    )
    pretrain_epochs: int = Field(20, ge=1, description="DEC: epochs of reconstruction")
    update_interval: int = Field(140, ge=1, description="DEC: updates between targets")
    batch_size: int = Field(256, ge=1, description="DEC: embeddings per update")
    max_iter: int = Field(4000, ge=1, description="DEC: updates at most")
    tol: float = Field(0.001, ge=0, lt=1, description="DEC: stop below this share of changes")
    learning_rate: float = Field(1e-3, gt=0, description="DEC: of the joint phase")
    gamma: float = Field(0.1, ge=0, description="IDEC: weight of the clustering loss")
    allowed_fall: float = Field(
        0.0,
        ge=0,
        le=1,
        description="DEC, IDEC: agreement they may lose to their k-means start before it is used",
    )
    kmeans_restarts: int = Field(10, ge=1, description="k-means: best of so many starts")
    gmm_regularization: float = Field(1e-3, gt=0, description="gmm: added to the variances")
    spectral_neighbors: int = Field(10, ge=1, description="spectral: neighbors in the graph")
    dbscan_eps: float | None = Field(None, gt=0, description="dbscan: radius; none: by quantile")
    dbscan_eps_quantile: float = Field(
        0.5, gt=0, lt=1, description="dbscan: the radius is this quantile of neighbor distances"
    )
    dbscan_min_samples: int = Field(10, ge=1, description="dbscan: neighbors of a core point")
    hdbscan_min_cluster_size: int | None = Field(
        None, ge=2, description="hdbscan: smallest cluster; none: images / 40 classes"
    )
    hdbscan_min_samples: int = Field(5, ge=1, description="hdbscan: neighbors of a core point")
    spread_neighbors: int = Field(
        15, ge=1, description="spread, labels graph: neighbors in the graph"
    )
    spread_alpha: float = Field(
        0.99, gt=0, lt=1, description="spread: how far labels go; near 1: farther"
    )
    labels: Literal["network", "graph"] = Field(
        "network",
        description="whose labels: the outer network's of each image by itself, or those spread "
        "over the graph of nearest neighbors, labeled images among them",
    )
    graph_alpha: float = Field(
        0.95, ge=0, lt=1, description="labels graph: how much of a label comes from neighbors"
    )
    align: Literal["none", "labeled", "uniform"] = Field(
        "none",
        description="labels of all unlabeled images in the proportions of the labeled ones, or of "
        "equal classes, before any is chosen",
    )
    align_strength: Open[float] = Field(
        OPEN,
        gt=0,
        le=1,
        description="align: how far towards these proportions; 0.5: the square roots of the "
        "classes' factors that meet them; none: 1; with your own images 0.5 for labeled, as the "
        "unlabeled ones' may be others",
    )
    share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="trust at most this share of the unlabeled images, the most confident ones; "
        "none: all that pass",
    )
    share_of_each: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share: of each class trust at least this share of its images, however sure "
        "the others are, so that no class is left out",
    )
    max_per_class: int | None = Field(
        None,
        ge=1,
        description="trust at most so many images of a class, the most confident ones; none: all",
    )

    @model_validator(mode="after")
    def _two_targets(self) -> SelectConfig:
        if self.max_iter < 2 * self.update_interval:
            raise ValueError(
                f"max_iter = {self.max_iter} leaves no room for two targets of update_interval = "
                f"{self.update_interval} updates: raise it to {2 * self.update_interval} or more"
            )
        return self


class InnerConfig(Section):
    """The inner network: where its trusted labels and its own meet, and its unlabeled loss."""

    steps: int | None = Field(
        None,
        ge=1,
        description="optimizer updates of the inner network; none: as train.outer_share says",
    )
    tau_inner: float = Field(
        0.95, ge=0, le=1, description="confidence from which its own label replaces the trusted one"
    )
    merge: Literal["own_first", "trusted_first", "agreement"] = Field(
        "own_first",
        description="which label counts where the confident own one and the trusted one differ: "
        "the own (the paper's Heuristic 1), the trusted, or none",
    )
    tau_override: float | None = Field(
        None,
        ge=0,
        le=1,
        description="own_first: confidence from which the own label replaces another, trusted one; "
        "none: tau_inner",
    )
    trust_until: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of the updates in which trusted labels count; then FixMatch goes on "
        "alone",
    )
    loss: Literal["ce", "sce", "gce"] = Field("ce", description="unlabeled loss")
    sce_alpha: float = Field(1.0, ge=0, description="sce: weight of the cross-entropy")
    sce_beta: float = Field(0.1, ge=0, description="sce: weight of the reverse cross-entropy")
    gce_q: float = Field(0.7, gt=0, le=1, description="gce: 1 is mean absolute error, towards 0 ce")
    init: Literal["auto", "scratch", "pretrained", "outer"] = Field(
        "auto", description="starting weights; auto: pretrained where model.pretrained has any"
    )
    trusted_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the trusted labels that are given a wrong class at random, to study "
        "what label noise does",
    )

    @model_validator(mode="after")
    def _override_counts(self) -> InnerConfig:
        if self.tau_override is None:
            return self
        if self.merge != "own_first":
            raise ValueError(
                f"tau_override is for merge = own_first; merge = {self.merge} overrides nothing"
            )
        if self.tau_override < self.tau_inner:
            raise ValueError(
                f"tau_override = {self.tau_override:g} lies below tau_inner = {self.tau_inner:g}, "
                "which own labels have to reach anyway: raise it, or leave it out"
            )
        return self


class ScaleConfig(Section):
    """How many processes, on what; changes the speed, not the method."""

    num_workers: int = Field(1, ge=0, description="training workers; 0: in this process, to debug")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="go on with as few when nodes are lost, and grow again when they are back; "
        "none: wait for all",
    )
    use_gpu: Literal["auto", "yes", "no"] = Field("auto", description="auto: where there is one")
    cpus_per_worker: int | None = Field(
        None, ge=1, description="none: the cluster's CPUs shared out evenly"
    )


class FaultConfig(Section):
    """What keeps the work when something dies; changes no result."""

    save_minutes: float = Field(
        5.0, gt=0, description="minutes between saved states of a training under way"
    )
    save_every: int | None = Field(
        None, ge=1, description="also save after each so many updates; none: by time alone"
    )
    max_failures: int = Field(3, ge=0, description="times that failed training workers start again")
    wait_minutes: float = Field(
        30.0, gt=0, description="minutes to wait, in all, for lost nodes that training needs"
    )


# What the open fields are for named data sets; for images of one's own see ``resolve.fill``.
NAMED: dict[str, dict[str, Any]] = {
    "train": {"steps": 2000, "learning_rate": 0.03, "eval_every": 500, "log_every": 20},
    "model": {"pretrained": "no"},
    "select": {"align_strength": 1.0},
}

NO_FILE = ("auto", "no", "yes")  # values of model.pretrained that name no file
DATA_PLACES = ("labeled", "unlabeled", "test")

# What does not change the result, and so is in no key and no hash.
NOT_IN_HASH: Any = {
    "out": True,
    "store": True,
    "recipe": True,
    "scale": True,
    "faults": True,
    "on_warning": True,
    "track": True,
    "data": {"root", "device", "max_skipped"},
    "label": {"num_actors", "gpus_per_actor"},
}

# Fields that came when results had been recorded: at these values they change nothing, and hashes
# and keys leave them out, so that what was recorded is found again.
CAME_LATER: dict[str, dict[str, Any]] = {
    "": {"equal_compute": False},
    "data": {"max_pixels": 64_000_000},
    "train": {"outer_share": 0.5},
    "fixmatch": {"align": "none", "thresholds": "fixed"},
    "select": {
        "max_per_class": None,
        "spread_neighbors": 15,
        "spread_alpha": 0.99,
        "labels": "network",
        "graph_alpha": 0.95,
        "align": "none",
        "align_strength": 1.0,
        "share": None,
        "share_of_each": 0.0,
    },
    "inner": {"steps": None, "merge": "own_first", "tau_override": None, "trust_until": 1.0},
}


# What a named recipe sets: the fields of the method in which recipes differ.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {  # arXiv 2309.05826
        "train.outer_share": 0.5,
        "select.labels": "network",
        "select.align": "none",
        "select.clusterer": "dec",
        "select.tau_select": 0.8,
        "select.share": None,
        "select.share_of_each": 0.0,
        "inner.init": "auto",
        "inner.merge": "own_first",
        "inner.loss": "ce",
    },
    "graph": {  # ours: experiments/LOG.md, 2026-11-27
        "train.outer_share": 0.25,
        "select.labels": "graph",
        "select.align": "labeled",
        "select.clusterer": "none",
        "select.tau_select": 0.0,
        "select.share": 0.6,
        "select.share_of_each": 0.05,
        "inner.init": "outer",
        "inner.merge": "trusted_first",
        "inner.loss": "sce",
    },
}

DEFAULT_RECIPE: Literal["graph"] = "graph"


def set_recipe(values: dict[str, Any], name: Any) -> None:
    """Put the fields of a recipe into nested values, in place; an unknown name is told later."""
    values["recipe"] = name
    for place, value in (RECIPES.get(name, {}) if isinstance(name, str) else {}).items():
        section, _, field = place.partition(".")
        part = values.setdefault(section, {})
        if isinstance(part, dict):
            part[field] = value


def hashed(section: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a section (``""``: of the whole) as they go into hashes and keys."""
    later = CAME_LATER.get(section, {})
    return {name: each for name, each in values.items() if later.get(name, _NOTHING) != each}


def hashed_whole(values: dict[str, Any]) -> dict[str, Any]:
    """Nested values of a config, each section as it goes into hashes."""
    sections = {name: hashed(name, values[name]) for name in CAME_LATER if name in values}
    return hashed("", values) | sections


_NOTHING = object()


def is_open(section: Section, name: str) -> bool:
    """Whether a field that may be left open is."""
    return getattr(section, name) in (None, "auto")


class Config(Section):
    """A whole run."""

    recipe: Literal["paper", "graph"] = Field(
        DEFAULT_RECIPE,
        description="which labels are trusted and how, as in our best runs (graph, see README) or "
        "as in arXiv 2309.05826 (paper); it sets fields of train, select and inner, each of which "
        "can still be given",
    )
    seed: int = Field(0, ge=0, description="of everything random but the split")
    out: str | None = Field(
        None,
        description="run folder, or URI; none: runs/NAME-HASH, in a submitted job STORE/runs/...",
    )
    store: str | None = Field(
        None, description="artifacts: folder or URI; none: $KDFM_STORE or ~/.cache/kdfm_ray"
    )
    baseline: bool = Field(True, description="also train on the labeled images alone")
    equal_compute: bool = Field(
        False,
        description="also train FixMatch for as many updates as outer and inner network together",
    )
    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    fixmatch: FixMatchConfig = FixMatchConfig()
    augment: AugmentConfig = AugmentConfig()
    label: LabelConfig = LabelConfig()
    select: SelectConfig = SelectConfig()
    inner: InnerConfig = InnerConfig()
    scale: ScaleConfig = ScaleConfig()
    faults: FaultConfig = FaultConfig()
    on_warning: Literal["continue", "stop"] = Field(
        "continue", description="after a warning of a stage: go on, or end there with its text"
    )
    track: Literal["none", "mlflow", "wandb"] = Field(
        "none", description="also report metrics there; needs kdfm_ray[mlflow] or [wandb]"
    )

    @model_validator(mode="before")
    @classmethod
    def _recipe_fills(cls, values: Any) -> Any:
        """What is not given has the value of the recipe."""
        if not isinstance(values, dict):
            return values
        filled: dict[str, Any] = {}
        set_recipe(filled, values.get("recipe", DEFAULT_RECIPE))
        for section, fields in filled.items():
            given = values.get(section, {})
            if isinstance(fields, dict) and isinstance(given, dict):
                filled[section] = fields | given
            elif isinstance(fields, dict) and isinstance(given, Section):
                left = {k: v for k, v in fields.items() if k not in given.model_fields_set}
                filled[section] = given.model_copy(update=left)
        return values | filled

    @field_validator("out", mode="before")
    @classmethod
    def _out_as_text(cls, out: Any) -> Any:
        return str(out) if isinstance(out, Path) else out

    @field_validator("out")
    @classmethod
    def _out_is_a_folder(cls, out: str | None) -> str | None:
        if out is not None and Path(out).expanduser().is_file():
            raise ValueError(f"{out} is a file; give a folder for the run")
        return out

    @field_validator("store", "out")
    @classmethod
    def _holds_no_secret(cls, place: str | None) -> str | None:
        if place is not None and holds_secret(place):
            raise ValueError(SECRET_IN_URI)
        return place

    @model_validator(mode="after")
    def _named_sets_leave_nothing_open(self) -> Config:
        if self.data.name is not None:
            for section, values in NAMED.items():
                part = getattr(self, section)
                left = {name: value for name, value in values.items() if is_open(part, name)}
                object.__setattr__(self, section, part.model_copy(update=left))
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        problems = []
        if self.scale.num_workers > self.train.batch_size:
            problems.append(
                f"scale.num_workers = {self.scale.num_workers} is more than the "
                f"{self.train.batch_size} labeled images of a global batch: give at most as many "
                "workers as train.batch_size, or raise it"
            )
        if (self.scale.min_workers or 0) > self.scale.num_workers:
            problems.append(
                f"scale.min_workers = {self.scale.min_workers} is more than scale.num_workers = "
                f"{self.scale.num_workers}: give at most as many, or none"
            )
        if self.inner.init == "pretrained" and self.model.pretrained == "no":
            problems.append(
                "inner.init = pretrained needs weights: set model.pretrained to yes or to a file"
            )
        if self.train.norm_sync == "global" and self.scale.use_gpu == "no":
            problems.append(
                "train.norm_sync = global is torch's SyncBatchNorm, which runs on GPUs only: "
                "use local, or scale.use_gpu yes"
            )
        known = {"train.steps": self.train.steps, "inner.steps": self.inner.steps}
        steps = {name: value for name, value in known.items() if value is not None}
        if self.train.steps is not None and self.inner.steps is None:
            steps["the updates of the outer network"] = self.steps_of("outer")
            steps["the updates of the inner network"] = self.steps_of("inner")
        name, fewest = min(steps.items(), key=lambda item: item[1], default=("", math.inf))
        if self.train.warmup_steps >= fewest and self.train.warmup_steps > 0:
            problems.append(
                f"train.warmup_steps = {self.train.warmup_steps} must be below {name} = {fewest}"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def split_seed(self) -> int:
        """The seed of the split, which follows ``seed`` unless it is set."""
        return self.seed if self.data.split_seed is None else self.data.split_seed

    def steps_of(self, role: Role) -> int:
        """Optimizer updates of one of the run's networks; ``train.steps`` must not be open."""
        assert self.train.steps is not None, "resolve.fill comes first"
        outer = inner = self.train.steps
        if self.inner.steps is not None:
            inner = self.inner.steps
        elif self.train.outer_share != 0.5:
            both = 2 * self.train.steps
            outer = min(max(round(self.train.outer_share * both), 1), both - 1)
            inner = both - outer
        longer = outer + inner
        return {"outer": outer, "inner": inner, "longer": longer}.get(role, self.train.steps)

    def trained_as(self, role: Role) -> Config:
        """The config with ``train.steps`` as that network has them."""
        train = self.train.model_copy(update={"steps": self.steps_of(role)})
        return self.model_copy(update={"train": train})

    def hash(self) -> str:
        """Content hash (16 hex digits) of everything that changes the result."""
        return content_hash(hashed_whole(self.model_dump(mode="json", exclude=NOT_IN_HASH)))

    def to_yaml(self) -> str:
        """The resolved configuration as YAML; ``from_yaml`` reads it back equal."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @classmethod
    def from_yaml(cls, path: Path) -> Config:
        """Read a saved configuration; raises ``UserError`` with all mistakes."""
        try:
            values = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"cannot read the configuration {path}: {error}") from error
        return parse_config(values)


SECRET_IN_URI = (
    "a URI with a password in it would be printed and saved with the run: leave it out, "
    "and give credentials as the file system's own environment variables or files"
)


def holds_secret(uri: str) -> bool:
    """Whether a URI has a password before its host."""
    user, at, _ = uri.partition("://")[2].partition("/")[0].rpartition("@")
    return bool(at) and ":" in user


def absolute_paths(config: Config) -> Config:
    """The config with absolute paths: workers run in other folders than the driver."""

    def absolute(place: str | None) -> str | None:
        return place and _absolute_place(place.removeprefix("file://"))

    places: dict[str, Any] = {name: absolute(getattr(config.data, name)) for name in DATA_PLACES}
    places["root"] = config.data.root.expanduser().resolve()
    pretrained = config.model.pretrained
    if pretrained not in NO_FILE:
        pretrained = str(Path(pretrained).expanduser().resolve())
    return config.model_copy(
        update={
            "out": config.out and _absolute_place(config.out),
            "data": config.data.model_copy(update=places),
            "model": config.model.model_copy(update={"pretrained": pretrained}),
        }
    )


def _absolute_place(place: str) -> str:
    return place if "://" in place else str(Path(place).expanduser().resolve())


def content_hash(value: Any) -> str:
    """16 hex digits of the SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse_config(values: Any, extra_problems: list[str] | None = None) -> Config:
    """Validate ``values`` (nested dict); raises one ``UserError`` that lists every mistake."""
    problems = list(extra_problems or [])
    config = None
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        problems += describe_errors(error)
        problems += [new for new in _without(values, error) if new not in problems]
    if problems or config is None:
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(f"the configuration has {count}:\n{lines}")
    return config


def describe_errors(error: ValidationError, model: type[BaseModel] | None = None) -> list[str]:
    """One sentence per mistake in a ``model``, by default a ``Config``."""
    return _sentences(error.errors(), model or Config)


def _sentences(found: Sequence[Any], model: type[BaseModel]) -> list[str]:
    return [line for item in found for line in _describe(item, model).splitlines()]


def _without(values: Any, error: ValidationError) -> list[str]:
    """Mistakes of the whole, which are looked for only where no field is wrong by itself."""
    values = copy.deepcopy(values)
    for item in error.errors():
        parent, field = values, item["loc"][:2]
        for part in field[:-1]:
            parent = parent[part] if isinstance(parent, dict) and part in parent else {}
        if field and isinstance(parent, dict):
            parent.pop(field[-1], None)
    try:
        Config.model_validate(values)
    except ValidationError as rest:
        # What is missing now was taken out above.
        return _sentences([item for item in rest.errors() if item["type"] != "missing"], Config)
    return []


def default_values() -> dict[str, Any]:
    """Nested values of a config in which nothing is set yet, not even the data."""
    values = Config.model_construct(data=DataConfig(name="none")).model_dump(mode="json")
    values["data"]["name"] = None
    set_recipe(values, DEFAULT_RECIPE)
    return values


def flag_text(value: Any) -> str:
    """A field's value as the text of its flag."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value)
    return str(value)


def _describe(item: Any, model: type[BaseModel]) -> str:
    name = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{name}: {message}" if name and not message.startswith("give ") else message
    if item["type"] == "extra_forbidden":
        return f"{name}: unknown; {known_fields(item['loc'], model)}"
    if item["type"] == "missing":
        return f"{name}: missing"
    given = item["input"]
    return f"{name} = {given!r}: {message[0].lower()}{message[1:]}"


def known_fields(loc: tuple[Any, ...], root: type[BaseModel]) -> str:
    """Name the fields that stand beside ``loc``, closest match first where there is one."""
    import difflib

    model: Any = root
    for part in loc[:-1]:
        known = getattr(model, "model_fields", {}).get(part)
        kinds = [] if known is None else [known.annotation, *typing.get_args(known.annotation)]
        model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    if not hasattr(model, "model_fields"):
        return "leave it out"
    fields = sorted(model.model_fields)
    close = difflib.get_close_matches(str(loc[-1]), fields, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(fields)}"
