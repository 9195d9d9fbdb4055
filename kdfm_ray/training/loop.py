"""The only training loop: outer, inner, plain FixMatch and labeled-only networks alike.

Time is ``step``, the number of finished optimizer updates. Metrics stay sums on the device until
a line of them is written; then they are added over workers and divided once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdfm_ray.config import Config
from kdfm_ray.data.streams import rng
from kdfm_ray.method.fixmatch import Loss, StepOutput, fixmatch_step, supervised_step
from kdfm_ray.method.losses import make_loss
from kdfm_ray.models.backbone import Network, Output
from kdfm_ray.models.ema import Ema
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.training.batches import Batch, Batches, ImageSource, TrainingData
from kdfm_ray.training.evaluate import count_correct
from kdfm_ray.training.optimizer import cosine_factor, make_optimizer
from kdfm_ray.training.runtime import Runtime
from kdfm_ray.types import Role

EVAL_BATCH = 512  # images per forward pass of a validation


@dataclass(frozen=True)
class TrainResult:
    """What a finished training leaves.

    Attributes:
        network: the averaged (EMA) network, in eval mode; the same on all workers.
        metrics: one dict per line of ``metrics.jsonl``, on rank 0; empty elsewhere.
        val_accuracy: top-1 fraction on the validation split; ``None`` without one.
        seconds: wall time of the loop.
    """

    network: Network
    metrics: list[dict[str, Any]]
    val_accuracy: float | None
    seconds: float


def train_network(
    network: Network,
    data: TrainingData,
    config: Config,
    role: Role,
    runtime: Runtime,
    *,
    numerics: Numerics,
) -> TrainResult:
    """Train ``network`` for ``config.train.steps`` updates and return its moving average.

    Raises:
        FloatingPointError: the loss became NaN or infinite; names the step.
        ValueError: ``norm_sync = global`` on a CPU.
    """
    train = config.train
    training = Training(network, data, config, role, runtime, numerics)
    meter = _Meter(role, training.batches, config, runtime)
    started = time.perf_counter()
    for step in range(train.steps):
        sums = training.update(step)
        done = step + 1
        meter.add(sums)
        if done % train.log_every == 0 or done == train.steps:
            meter.write(done, learning_rate=training.learning_rate(step))
        if done % train.eval_every == 0 or done == train.steps:
            with meter.pause():
                source = training.batches.source
                accuracy = validate(training.ema.network, source, data, runtime, numerics)
            meter.write_validation(done, accuracy)
    runtime.average_buffers(training.ema.network)
    seconds = time.perf_counter() - started
    return TrainResult(training.ema.network, meter.lines, meter.val_accuracy, seconds)


class Training:
    """All that an update reads and changes.

    Attributes:
        network: being trained, not wrapped.
        ema: its moving average.
        optimizer: over its weights.
        batches: of every step.
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
        self.network = numerics.place(network, runtime.device).train()
        self.ema = Ema(network, train.ema_decay, warmup=train.ema_warmup)
        wrapped = numerics.compiled(runtime.wrap(network, norm_sync=train.norm_sync))
        self.optimizer = make_optimizer(
            train.optimizer,
            network,
            learning_rate=train.learning_rate,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
            layer_decay=train.layer_decay,
        )
        self.batches = Batches(data, config, role, runtime)
        self._loss = _Loss(wrapped, config, role, runtime, numerics)
        self._peaks = [group["lr"] for group in self.optimizer.param_groups]
        self._random_layers = _has_dropout(network)
        self._config = config
        self._dropout_stream = f"{role}/dropout/{runtime.rank}"

    def update(self, step: int) -> dict[str, Tensor]:
        """Optimizer update ``step`` (from 0); returns the sums that the step of the method gave."""
        if self._random_layers:
            _reseed(self._config.seed, step, self._dropout_stream)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * self._factor(step)
        output = self._loss(self.batches.at(step))
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
    ) -> None:
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
        self._tau = inner.tau_inner if role == "inner" else config.fixmatch.tau

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
        )

    def _forward(self, images: Tensor) -> Output:
        # One autocast region per pass: its cache of cast weights must not carry weights that the
        # pass without a graph has cast into the pass that needs their gradient.
        with self._numerics.autocast(self._device):
            return self._wrapped(images)


class _Meter:
    """Adds up what steps report, and turns it into lines of metrics on rank 0."""

    def __init__(self, role: Role, batches: Batches, config: Config, runtime: Runtime) -> None:
        self.lines: list[dict[str, Any]] = []
        self.val_accuracy: float | None = None
        self._role, self._batches, self._config, self._runtime = role, batches, config, runtime
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._since = time.perf_counter()

    def add(self, sums: dict[str, Tensor]) -> None:
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1

    def write(self, step: int, *, learning_rate: float) -> None:
        names = list(self._sums)
        totals = torch.stack([self._sums[name].to(torch.float64) for name in names])
        values = self._runtime.sum_over_workers(totals).tolist()
        sums = dict(zip(names, values, strict=True))
        _check_finite(sums, step, self._role)
        now = time.perf_counter()
        views = self._batches.size_x + 2 * self._batches.size_u
        line = self._means(sums) | {
            "learning_rate": learning_rate,
            "images_per_second": views * self._steps / (now - self._since),
        }
        self._sums, self._steps, self._since = {}, 0, now
        self._put(step, line)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens here is no training time."""
        before = time.perf_counter()
        yield
        self._since += time.perf_counter() - before

    def write_validation(self, step: int, accuracy: float | None) -> None:
        if accuracy is None:
            return
        self.val_accuracy = accuracy
        self._put(step, {"val_accuracy": accuracy})

    def _means(self, sums: dict[str, float]) -> dict[str, float | None]:
        count_x = self._batches.size_x * self._steps
        loss_x = sums["loss_x"] / count_x
        if "loss_u" not in sums:
            return {"loss": loss_x, "loss_x": loss_x}
        count_u = self._batches.size_u * self._steps
        loss_u = sums["loss_u"] / count_u
        known = sums["known"]
        return {
            "loss": loss_x + self._config.fixmatch.lambda_u * loss_u,
            "loss_x": loss_x,
            "loss_u": loss_u,
            "mask_rate": sums["mask"] / count_u,
            "trusted_rate": sums["trusted"] / max(1.0, sums["counted"]),
            "override_rate": sums["override"] / max(1.0, sums["counted"]),
            "pseudo_label_precision": sums["correct"] / known if known else None,
        }

    def _put(self, step: int, values: dict[str, Any]) -> None:
        if self._runtime.rank != 0:
            return
        line = {"stage": self._role, "step": step} | values
        self.lines.append(line)
        self._runtime.emit(line | {"total": self._config.train.steps})


def _check_finite(sums: dict[str, float], step: int, role: str) -> None:
    bad = [name for name in ("loss_x", "loss_u") if not abs(sums.get(name, 0.0)) < float("inf")]
    if bad:
        raise FloatingPointError(
            f"the {role} network's {' and '.join(bad)} became NaN or infinite in the updates "
            f"before step {step}: lower train.learning_rate, or use train.precision fp32"
        )


def _has_dropout(network: nn.Module) -> bool:
    """Whether the network draws random numbers (dropout, drop-path) in train mode."""
    return any(
        getattr(module, "p", 0.0) or getattr(module, "drop_prob", 0.0)
        for module in network.modules()
        if "drop" in type(module).__name__.lower()
    )


def _reseed(seed: int, step: int, stream: str) -> None:
    torch.manual_seed(int(rng(seed, step, stream).integers(2**63)))
