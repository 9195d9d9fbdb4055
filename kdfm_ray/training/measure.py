"""Which numerics are fastest here: a few updates of each candidate, timed on the run's own network.

The best precision and layout differ by network and machine, several times over, and no rule tells
them: bfloat16 wins on one CPU for a Wide ResNet and loses there for an EfficientNet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdfm_ray.config import TrainConfig
from kdfm_ray.method.fixmatch import fixmatch_step
from kdfm_ray.method.losses import cross_entropy
from kdfm_ray.models.backbone import Network, Output
from kdfm_ray.models.numerics import Numerics, allowed_numerics

BUDGET_SECONDS = 10.0  # of all candidates together
BUDGET_SHARE = 0.02  # of a long run, where that is more
ROUNDS = 5  # timed updates of a candidate, at most
HOPELESS = 1.5  # times the fastest: not timed again
COMPILING = 100.0  # seconds that torch.compile takes, about
GAIN = 0.03  # share of an update that compiling has to save


@dataclass(frozen=True)
class Shape:
    """What one worker passes through the network in an update.

    Attributes:
        batch_x: labeled images.
        batch_u: unlabeled images, each with a weak and a strong view.
        image: (c, h, w).
        updates: how many such updates the run has, over all its networks.
        same: whether each update has as many strong views as the others.
    """

    batch_x: int
    batch_u: int
    image: tuple[int, int, int]
    updates: int
    same: bool = True


class CannotCompileError(Exception):
    """torch.compile does not work for the network, or not on the machine."""


def candidates(train: TrainConfig, device: torch.device) -> list[Numerics]:
    """What the config allows; bfloat16 of its own accord only where there is arithmetic for it."""
    allowed = allowed_numerics(train)
    if train.precision == "auto" and not computes_bf16(device):
        return [choice for choice in allowed if choice.precision == "fp32"]
    return allowed


def measure(
    make_network: Callable[[], Network],
    choices: list[Numerics],
    shape: Shape,
    device: torch.device,
    *,
    budget: float = BUDGET_SECONDS,
) -> dict[Numerics, float]:
    """Seconds of an update (forward and backward) with each choice, median, fastest first.

    Every choice has one update untimed, which also makes kernels. One whose first update took
    ``HOPELESS`` times as long as the first of the best has no other. A choice for which the budget
    or the GPU's memory does not last is left out; the first one never is for the budget, but has
    that first update alone where it leaves no time for a second.

    Args:
        make_network: gives the same network each time.
        choices: candidates, likely winners first.
        shape: of an update.
        device: where to compute.
        budget: seconds for all of it, or ``BUDGET_SHARE`` of the run's estimated time if longer.
    """
    started = time.perf_counter()
    trials: dict[Numerics, Callable[[], float]] = {}  # of those that may be timed again
    firsts: dict[Numerics, float] = {}
    seconds: dict[Numerics, list[float]] = {}

    def left() -> float:
        cold = min(firsts.values(), default=0.0)
        estimate = min((min(times) for times in seconds.values()), default=cold) * shape.updates
        return max(budget, BUDGET_SHARE * estimate) - (time.perf_counter() - started)

    slowest_start, full = 0.0, None
    for choice in choices:
        if seconds and left() < slowest_start:
            break
        began = time.perf_counter()
        try:
            trial = _trial(make_network(), choice, shape, device)
            first = firsts[choice] = trial()
            best = min(seconds, key=lambda one: min(seconds[one]), default=choice)
            if first > HOPELESS * firsts[best]:
                seconds[choice] = [first]
                continue
            if left() < first:
                if not seconds:
                    seconds[choice] = [first]
                break
            seconds[choice] = [trial()]
        except torch.OutOfMemoryError as error:
            full = error
            continue
        trials[choice] = trial
        slowest_start = max(slowest_start, time.perf_counter() - began)
    if full is not None:
        if not seconds:
            raise full
        torch.cuda.empty_cache()
    for _ in range(ROUNDS - 1):
        fastest = min(min(times) for times in seconds.values())
        for choice, trial in trials.items():
            times = seconds[choice]
            if min(times) <= HOPELESS * fastest and left() > max(times):
                times.append(trial())
    medians = {choice: float(np.median(times)) for choice, times in seconds.items()}
    return dict(sorted(medians.items(), key=lambda item: item[1]))


def pays_to_compile(seconds: float, shape: Shape) -> bool:
    """Whether the run is so long that ``BUDGET_SHARE`` of it is time to try what compiling gives.

    Args:
        seconds: of an update with what ``measure`` found fastest.
        shape: with the updates of the run.
    """
    return BUDGET_SHARE * seconds * shape.updates >= COMPILING


def measure_compiled(
    make_network: Callable[[], Network], plain: Numerics, shape: Shape, device: torch.device
) -> dict[Numerics, float]:
    """Seconds of an update with ``plain`` and with its compiled form, in turn: the choice first.

    The compiled one is chosen where it saves ``GAIN``. Several workers compile the network in more
    pieces, between which they exchange gradients; that is not measured.

    Args:
        make_network, shape, device: as for ``measure``.
        plain: the fastest without compiling.

    Raises:
        CannotCompileError: whatever a compiler said.
    """
    compiled = replace(plain, compile=True)
    trials = {choice: _trial(make_network(), choice, shape, device) for choice in (plain, compiled)}
    trials[plain]()
    try:
        trials[compiled]()  # makes the kernels
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise CannotCompileError(f"{type(error).__name__}: {lines[0]}") from error
    times: dict[Numerics, list[float]] = {choice: [] for choice in trials}
    for _ in range(ROUNDS):
        for choice, trial in trials.items():
            times[choice].append(trial())
    medians = {choice: float(np.median(found)) for choice, found in times.items()}
    if medians[compiled] <= (1 - GAIN) * medians[plain]:
        return {compiled: medians[compiled], plain: medians[plain]}
    return medians


def describe(seconds: dict[Numerics, float]) -> list[dict[str, Any]]:
    """The measurement as JSON, fastest first."""
    return [{"numerics": str(choice), "seconds": value} for choice, value in seconds.items()]


def _trial(
    network: Network, numerics: Numerics, shape: Shape, device: torch.device
) -> Callable[[], float]:
    """A function that does one update and says how long it took."""
    if device.type == "cuda":  # as in training
        torch.backends.cudnn.benchmark = True
    network = numerics.place(network, device).train()
    module = numerics.compiled(network, same_shapes=shape.same)
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> Tensor:
        drawn = torch.randint(0, 256, (count, *shape.image), generator=generator, dtype=torch.uint8)
        return drawn.to(device)

    def forward(batch: Tensor) -> Output:
        with numerics.autocast(device):
            output: Output = module(batch)
        return output

    def labels(count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int64, device=device)

    x, weak, strong = images(shape.batch_x), images(shape.batch_u), images(shape.batch_u)

    def update() -> float:
        started = time.perf_counter()
        loss = fixmatch_step(
            forward,
            x,
            labels(shape.batch_x),
            weak,
            strong,
            labels(shape.batch_u),  # trusted, so that each strong view gives a loss
            labels(shape.batch_u),
            labels(shape.batch_u).bool(),
            tau=1.0,
            lambda_u=1.0,
            unlabeled_loss=cross_entropy,
            denom_x=float(shape.batch_x),
            denom_u=float(shape.batch_u),
        ).loss
        network.zero_grad(set_to_none=True)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - started
        network.zero_grad(set_to_none=True)  # the others need the memory
        return took

    return update


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic of its own."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not hasattr(torch.cpu, "get_capabilities"):  # younger than the oldest torch we allow
        return torch.cpu._is_avx512_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
