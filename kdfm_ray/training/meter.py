"""Figures of a training: sums on the device until a line of them is written.

Then they are added over workers and divided once, so that no update waits for a number.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kdfm_ray.config import Config
from kdfm_ray.training.batches import Batches
from kdfm_ray.training.runtime import Runtime
from kdfm_ray.types import Role

LOSSES = ("loss_x", "loss_u")
PATIENCE = 1 / 3  # of a training may pass without a pseudo label before somebody should know


class Meter:
    """Adds up what updates report, and turns it into lines of metrics on rank 0.

    Attributes:
        lines: all lines so far, on rank 0.
        val_accuracy: of the last validation.
        resumed: steps at which the training went on from a saved state.
        warnings: what the user should know, each with what to try; on rank 0.
    """

    def __init__(self, role: Role, batches: Batches, config: Config, runtime: Runtime) -> None:
        """Start with update 0."""
        self.lines: list[dict[str, Any]] = []
        self.val_accuracy: float | None = None
        self.resumed: list[int] = []
        self.warnings: list[str] = []
        self._role, self._batches, self._config, self._runtime = role, batches, config, runtime
        self._sums: dict[str, Tensor] = {}
        self._losses: list[Tensor] = []  # of each update of this window, to name the one that broke
        self._first = 0  # update that _losses begins with
        self._steps = 0
        self._since = self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall time of the training so far, also before it was interrupted."""
        return time.perf_counter() - self._started

    def add(self, sums: dict[str, Tensor]) -> None:
        """Take the sums of one update over this worker's images."""
        if self._sums:
            assert sums.keys() == self._sums.keys(), (*sums, *self._sums)
            torch._foreach_add_(list(self._sums.values()), [sums[name] for name in self._sums])
        else:
            self._sums = {name: value.clone() for name, value in sums.items()}
        self._losses.append(torch.stack([sums[name] for name in LOSSES if name in sums]).sum())
        self._steps += 1

    def write(self, step: int, *, learning_rate: float) -> None:
        """Write the line of all updates since the last one.

        Raises:
            FloatingPointError: a loss became NaN or infinite.
        """
        totals = torch.stack([value.to(torch.float64) for value in self._sums.values()])
        losses = torch.stack(self._losses).to(torch.float64)
        values = self._runtime.sum_over_workers(torch.cat([totals, losses])).tolist()
        self._check_finite(values[len(totals) :])
        sums = dict(zip(self._sums, values, strict=False))
        now = time.perf_counter()
        views = self._batches.size_x + 2 * self._batches.size_u
        line = self._means(sums) | {
            "learning_rate": learning_rate,
            "images_per_second": views * self._steps / (now - self._since),
        }
        self._sums, self._losses, self._steps, self._since = {}, [], 0, now
        self._first = step
        self._put({"step": step} | line)
        self._watch_mask(step)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens here is no part of the images a second."""
        before = time.perf_counter()
        yield
        self._since += time.perf_counter() - before

    def write_validation(self, step: int, accuracy: float | None) -> None:
        """Write a line with the accuracy on the validation split, if there is one."""
        if accuracy is None:
            return
        self.val_accuracy = accuracy
        self._put({"step": step, "val_accuracy": accuracy})

    def facts(self, step: int) -> dict[str, Any]:
        """What ``restore`` needs to go on after ``step``; all workers call it together.

        Raises:
            FloatingPointError: a loss became NaN or infinite.
        """
        own = [value.to(torch.float64) for value in self._sums.values()]
        losses = [value.to(torch.float64) for value in self._losses]
        device = self._runtime.device
        both = torch.stack([*own, *losses]) if own else torch.empty(0, device=device).double()
        rows = self._runtime.gather(both).cpu()
        self._check_finite(rows[:, len(own) :].sum(dim=0).tolist())
        now = time.perf_counter()
        return {
            "lines": list(self.lines),
            "val_accuracy": self.val_accuracy,
            "resumed": list(self.resumed),
            "warnings": list(self.warnings),
            "seconds": now - self._started,
            "window": {
                "steps": self._steps,
                "seconds": now - self._since,
                "dtypes": {name: str(v.dtype).split(".")[1] for name, v in self._sums.items()},
                "sums_of_workers": rows[:, : len(own)].tolist(),
            },
        }

    def restore(self, facts: dict[str, Any], step: int) -> None:
        """Go on after ``step`` from what ``facts`` said then; the lines so far are emitted anew."""
        window, now = facts["window"], time.perf_counter()
        rows = torch.tensor(window["sums_of_workers"], dtype=torch.float64)
        if len(rows) == self._runtime.world_size:
            mine = rows[self._runtime.rank]
        else:  # other workers than then: one of them takes all that was summed
            mine = rows.sum(dim=0) * (self._runtime.rank == 0)
        self._sums = {
            name: value.to(getattr(torch, dtype)).to(self._runtime.device)
            for (name, dtype), value in zip(window["dtypes"].items(), mine, strict=True)
        }
        self._losses, self._first, self._steps = [], step, window["steps"]
        self._since = now - window["seconds"]
        self._started = now - facts["seconds"]
        self.val_accuracy = facts["val_accuracy"]
        self.resumed = [*facts["resumed"], step]
        if self._runtime.rank != 0:
            return
        self.warnings = list(facts["warnings"])
        total = self._config.train.steps
        self._runtime.emit({"stage": self._role, "resumed": step, "total": total})
        for line in facts["lines"]:
            self.lines.append(line)
            self._runtime.emit(line | {"total": total})

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

    def _put(self, values: dict[str, Any]) -> None:
        if self._runtime.rank != 0:
            return
        line = {"stage": self._role} | values
        self.lines.append(line)
        self._runtime.emit(line | {"total": self._config.train.steps})

    def _watch_mask(self, step: int) -> None:
        """Warn once where no unlabeled image gives a loss for a third of the training."""
        total = self._config.train.steps
        since = step - PATIENCE * total
        recent = [line for line in self.lines if "mask_rate" in line and line["step"] > since]
        if since < 0 or self.warnings or any(line["mask_rate"] for line in recent) or not recent:
            return
        name = "inner.tau_inner" if self._role == "inner" else "fixmatch.tau"
        tau = self._config.inner.tau_inner if self._role == "inner" else self._config.fixmatch.tau
        text = (
            f"no pseudo label reached {name} = {tau:g} in updates {max(0, int(since)) + 1} to "
            f"{step} of {total}, so nothing was learned from unlabeled images: train for more "
            f"steps, give more labeled images or pretrained weights, or lower {name}"
        )
        self.warnings.append(text)
        self._runtime.emit({"stage": self._role, "warning": text})

    def _check_finite(self, losses: list[float]) -> None:
        bad = [number for number, loss in enumerate(losses) if not abs(loss) < float("inf")]
        if bad:
            raise FloatingPointError(
                _what_broke(self._role, self._first + bad[0] + 1, self._config)
            )


def _what_broke(role: str, update: int, config: Config) -> str:
    train = config.train
    advice = "lower it, or add train.warmup_steps"
    if train.precision != "fp32":
        advice += "; if that does not help, use train.precision fp32"
    return (
        f"the loss of the {role} network became NaN or infinite in update {update} of "
        f"{train.steps}: most likely train.learning_rate = {train.learning_rate:g} is too high; "
        f"{advice}"
    )
