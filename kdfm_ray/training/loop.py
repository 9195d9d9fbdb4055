"""The only training loop: outer, inner, plain FixMatch and labeled-only networks alike.

Time is ``step``, the number of finished optimizer updates. A training that was interrupted goes on
from its saved state and ends with the same weights as one that was not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdfm_ray.checkpoints import Checkpoints
from kdfm_ray.config import Config
from kdfm_ray.data.streams import rng
from kdfm_ray.method.align import Alignment, class_shares
from kdfm_ray.method.fixmatch import (
    Loss,
    Merge,
    StepOutput,
    Threshold,
    fixmatch_step,
    supervised_step,
)
from kdfm_ray.method.losses import make_loss
from kdfm_ray.method.merge import merge_targets
from kdfm_ray.method.thresholds import Thresholds
from kdfm_ray.models.backbone import Network, Output
from kdfm_ray.models.ema import Ema
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.training.batches import Batch, Batches, ImageSource, TrainingData
from kdfm_ray.training.evaluate import count_correct
from kdfm_ray.training.meter import Meter
from kdfm_ray.training.optimizer import cosine_factor, make_optimizer
from kdfm_ray.training.runtime import Runtime, Wish
from kdfm_ray.training.saver import Saver
from kdfm_ray.training.state import State, copy_state, restore_state
from kdfm_ray.types import Role, Stopped, UserError

EVAL_BATCH = 512  # images per forward pass of a validation


@dataclass(frozen=True)
class TrainResult:
    """What a finished training leaves.

    Attributes:
        network: the averaged (EMA) network, in eval mode; the same on all workers.
        metrics: one dict per line of ``metrics.jsonl``, on rank 0; empty elsewhere.
        val_accuracy: top-1 fraction on the validation split; ``None`` without one.
        seconds: wall time of the loop, without what was lost or waited between interruptions.
        resumed: steps at which it went on from a saved state.
        warnings: what the user should know, on rank 0.
    """

    network: Network
    metrics: list[dict[str, Any]]
    val_accuracy: float | None
    seconds: float
    resumed: list[int]
    warnings: list[str]


def train_network(
    network: Network,
    data: TrainingData,
    config: Config,
    role: Role,
    runtime: Runtime,
    *,
    numerics: Numerics,
    checkpoints: Checkpoints | None = None,
) -> TrainResult:
    """Train ``network`` for ``config.train.steps`` updates and return its moving average.

    Args:
        network: with its starting weights.
        data: the same on all workers.
        config: the run's.
        role: which network.
        runtime: where this worker stands.
        numerics: as resolved, the same on all workers.
        checkpoints: where states are saved, and gone on from where there is one; ``None``: nowhere.

    Raises:
        FloatingPointError: the loss became NaN or infinite; names the update.
        Stopped: it was asked to stop; the state is saved.
        UserError: there are saved states, and none that can be gone on with.
        ValueError: ``norm_sync = global`` on a CPU.
    """
    train = config.train
    training = Training(network, data, config, role, runtime, numerics)
    meter = Meter(role, training.batches, config, runtime)
    saver = Saver(checkpoints, config.faults, runtime, role)
    started = _resume(training, meter, saver, runtime)
    try:
        for step in range(started, train.steps):
            meter.add(training.update(step))
            done = step + 1
            if done % train.log_every == 0 or done == train.steps:
                meter.write(done, learning_rate=training.learning_rate(step))
            if done % train.eval_every == 0 or done == train.steps:
                with meter.pause():
                    source = training.batches.source
                    accuracy = validate(training.ema.network, source, data, runtime, numerics)
                meter.write_validation(done, accuracy)
            wish = saver.decide(done) if done < train.steps else Wish.NONE
            if wish != Wish.NONE:
                _save(training, meter, saver, done, runtime, wait=wish == Wish.STOP)
            if wish == Wish.STOP:
                raise _stopped(role, done, train.steps, saver)
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}{_what_stays(saver)}") from error
    finally:
        saver.finish()
    runtime.average_buffers(training.ema.network)
    _check_weights(training.ema.network, role, config, saver)
    return TrainResult(
        network=training.ema.network,
        metrics=meter.lines,
        val_accuracy=meter.val_accuracy,
        seconds=meter.seconds,
        resumed=meter.resumed,
        warnings=[*meter.warnings, *saver.warnings],
    )


def _resume(training: Training, meter: Meter, saver: Saver, runtime: Runtime) -> int:
    """Go on from the newest saved state, if there is one; returns the finished updates."""
    try:
        state = saver.resume()
    except ValueError as error:
        raise UserError(
            f"{error}: delete {saver.place} to train this network from its start"
        ) from error
    if state is None:
        return 0
    try:
        restore_state(
            state,
            training.network,
            training.ema.network,
            training.optimizer,
            training.labeling,
            runtime,
        )
        meter.restore(state.facts, state.step)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot go on from the state after update {state.step} in {saver.place} ({error}): "
            "delete that folder to train this network from its start"
        ) from error
    return state.step


def _save(
    training: Training, meter: Meter, saver: Saver, step: int, runtime: Runtime, *, wait: bool
) -> None:
    with meter.pause():
        facts = meter.facts(step)  # raises where the loss is not finite: nothing is saved then
        state: State | None = copy_state(
            step,
            training.network,
            training.ema.network,
            training.optimizer,
            training.labeling,
            facts,
            runtime,
        )
        saver.save(state, wait=wait)


def _stopped(role: Role, step: int, steps: int, saver: Saver) -> Stopped:
    if saver.last_saved == step:
        kept = "its state is saved, and the same command goes on from there"
    elif saver.last_saved is not None:
        kept = f"the same command goes on from the state after update {saver.last_saved}"
    else:
        kept = "no state of it was saved"
    return Stopped(f"stopped after update {step} of {steps} of the {role} network; {kept}")


def _check_weights(network: nn.Module, role: Role, config: Config, saver: Saver) -> None:
    """The last update may break what its own loss did not show."""
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise FloatingPointError(
                f"{name} of the {role} network is not finite after its last update: lower "
                f"train.learning_rate = {config.train.learning_rate:g}{_what_stays(saver)}"
            )


def _what_stays(saver: Saver) -> str:
    if not saver.place or saver.last_saved is None:
        return ""
    return f". The last good state, after update {saver.last_saved}, stays in {saver.place}"


class Training:
    """All that an update reads and changes.

    Attributes:
        network: being trained, not wrapped.
        ema: its moving average.
        optimizer: over its weights.
        batches: of every step.
        labeling: what makes pseudo labels of probabilities and keeps a state: ``alignment``, which
            does nothing where it is off, and ``thresholds``, if they adapt.
    """

    def __init__(
        self,
        network: Network,
        data: TrainingData,
        config: Config,
        role: Role,
        runtime: Runtime,
        numerics: Numerics,
    ) -> None:
        """Put the network on its device; raises as ``train_network`` does."""
        train = config.train
        if runtime.device.type == "cuda":  # batches of one size: cuDNN may try what is fastest
            torch.backends.cudnn.benchmark = config.fixmatch.strong_views == "all"
        self.network = numerics.place(network, runtime.device).train()
        self.ema = Ema(network, train.ema_decay, warmup=train.ema_warmup)
        wrapped = numerics.compiled(
            runtime.wrap(network, norm_sync=train.norm_sync),
            same_shapes=config.fixmatch.strong_views == "all",
            optional=train.compile == "auto",  # a machine of a cluster may have no compiler
        )
        self.optimizer = make_optimizer(
            train.optimizer,
            network,
            learning_rate=train.learning_rate,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
            layer_decay=train.layer_decay,
        )
        self.batches = Batches(data, config, role, runtime)
        self.labeling = _make_labeling(network, data, config, role, runtime)
        self._loss = _Loss(wrapped, config, role, runtime, numerics, self.labeling)
        self._peaks = [group["lr"] for group in self.optimizer.param_groups]
        self._random_layers = _has_dropout(network)
        self._trusted_steps = round(config.inner.trust_until * train.steps)
        self._config = config
        self._dropout_stream = f"{role}/dropout/{runtime.rank}"

    def update(self, step: int) -> dict[str, Tensor]:
        """Optimizer update ``step`` (from 0); returns the sums that the step of the method gave."""
        if self._random_layers:
            _reseed(self._config.seed, step, self._dropout_stream)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * self._factor(step)
        batch = self.batches.at(step)
        if step >= self._trusted_steps:  # labeled images keep theirs: it is true
            trusted = batch.trusted_u.masked_fill(batch.counted_u, -1)
            batch = replace(batch, trusted_u=trusted)
        output = self._loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        self.optimizer.step()
        self.ema.update(self.network, step)
        return output.sums

    def learning_rate(self, step: int) -> float:
        """Of the last layer, in update ``step``."""
        return self._config.train.learning_rate * self._factor(step)

    def _factor(self, step: int) -> float:
        train = self._config.train
        return cosine_factor(step, train.steps, warmup_steps=train.warmup_steps)


def validate(
    network: Network,
    source: ImageSource,
    data: TrainingData,
    runtime: Runtime,
    numerics: Numerics,
) -> float | None:
    """Top-1 fraction on the validation split, each worker doing its share."""
    index = data.split.val_index
    if len(index) == 0:
        return None
    runtime.average_buffers(network)
    mine = index[runtime.rank :: runtime.world_size]
    correct = count_correct(
        network, source, mine, data.labels[mine], batch_size=EVAL_BATCH, numerics=numerics
    )
    total = runtime.sum_over_workers(torch.tensor([correct], device=runtime.device))
    return total.item() / len(index)


class _Loss:
    """Loss of one batch: binds the step of the method to the config's numbers."""

    def __init__(
        self,
        wrapped: nn.Module,
        config: Config,
        role: Role,
        runtime: Runtime,
        numerics: Numerics,
        labeling: nn.ModuleDict,
    ) -> None:
        self._align = labeling["alignment"]
        self._wrapped, self._config, self._role = wrapped, config, role
        self._device, self._numerics = runtime.device, numerics
        # A mean over the global batch: DDP divides by the number of workers, so we do not.
        self._denom_x = config.train.batch_size / runtime.world_size
        self._denom_u = self._denom_x * config.fixmatch.mu
        inner = config.inner
        self._unlabeled: Loss = make_loss(
            inner.loss if role == "inner" else "ce",
            alpha=inner.sce_alpha,
            beta=inner.sce_beta,
            q=inner.gce_q,
        )
        self._tau: float | Threshold = _largest_threshold(config, role)
        if "thresholds" in labeling:
            self._tau = labeling["thresholds"]
        self._merge: Merge = merge_targets
        if role == "inner":
            rule, override = inner.merge, inner.tau_override
            self._merge = partial(merge_targets, rule=rule, tau_override=override)

    def __call__(self, batch: Batch) -> StepOutput:
        if self._role == "baseline":
            return supervised_step(
                self._forward, batch.images_x, batch.label_x, denom_x=self._denom_x
            )
        return fixmatch_step(
            self._forward,
            batch.images_x,
            batch.label_x,
            batch.weak_u,
            batch.strong_u,
            batch.trusted_u,
            batch.truth_u,
            batch.counted_u,
            tau=self._tau,
            lambda_u=self._config.fixmatch.lambda_u,
            unlabeled_loss=self._unlabeled,
            denom_x=self._denom_x,
            denom_u=self._denom_u,
            align=self._align,
            merge=self._merge,
        )

    def _forward(self, images: Tensor) -> Output:
        # One autocast region per pass: its cache of cast weights must not carry weights that the
        # pass without a graph has cast into the pass that needs their gradient.
        with self._numerics.autocast(self._device):
            return self._wrapped(images)


def _largest_threshold(config: Config, role: Role) -> float:
    return config.inner.tau_inner if role == "inner" else config.fixmatch.tau


def _make_labeling(
    network: Network, data: TrainingData, config: Config, role: Role, runtime: Runtime
) -> nn.ModuleDict:
    parts = nn.ModuleDict({"alignment": _make_alignment(network, data, config, role, runtime)})
    if config.fixmatch.thresholds == "adaptive" and role != "baseline":
        most = _largest_threshold(config, role)
        thresholds = Thresholds(network.spec.num_classes, most, runtime.sum_over_workers)
        parts["thresholds"] = thresholds.to(runtime.device)
    return parts


def _make_alignment(
    network: Network, data: TrainingData, config: Config, role: Role, runtime: Runtime
) -> nn.Module:
    if config.fixmatch.align == "none" or role == "baseline":
        return nn.Identity()
    target = torch.ones(network.spec.num_classes)
    if config.fixmatch.align == "labeled":
        labels = torch.from_numpy(data.labels[data.split.labeled_index])
        target = class_shares(labels, network.spec.num_classes)
    return Alignment(target.to(runtime.device), runtime.sum_over_workers)


def _has_dropout(network: nn.Module) -> bool:
    """Whether the network draws random numbers (dropout, drop-path) in train mode."""
    return any(
        getattr(module, "p", 0.0) or getattr(module, "drop_prob", 0.0)
        for module in network.modules()
        if "drop" in type(module).__name__.lower()
    )


def _reseed(seed: int, step: int, stream: str) -> None:
    torch.manual_seed(int(rng(seed, step, stream).integers(2**63)))
