"""Precision and memory layout of a run: pinned by its config, or measured once and remembered."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kdfm_ray.config import Config, content_hash
from kdfm_ray.jobs.prepare import Prepared, make_network
from kdfm_ray.jobs.session import Session, cpu_name
from kdfm_ray.models.numerics import Numerics, compile_is_open
from kdfm_ray.store import Store

if TYPE_CHECKING:
    import torch

STAGE = "numerics"  # where measurements lie in the store
VERSION = 1


def measured_numerics(
    session: Session, store: Store, config: Config, prepared: Prepared, *, timed: bool = False
) -> tuple[Numerics, dict[str, Any]]:
    """The fastest numerics that the config allows, on a worker of this session.

    A measurement is kept per (machine, network, shape of an update), so that runs on one machine
    agree although timings are noisy.

    Args:
        session: where to measure.
        store: keeps the measurement.
        config: the run's.
        prepared: its images.
        timed: measure also what is alone, for its speed.

    Returns:
        The choice, and how it came about: ``measured``, ``seconds`` of an update per candidate
        (empty where there is one alone, as bfloat16 is none on CPUs that emulate it), ``reused``,
        ``compile_error`` where the compiled form was tried and could not be made.
    """
    record = session.call(
        _find_or_measure,
        store.root,
        config,
        prepared.facts,
        session.use_gpu,
        session.cpus_per_worker,
        timed,
        gpu=True,
    )
    return Numerics(**record["choice"]), record


def emulates_bf16(session: Session) -> bool:
    """Whether bfloat16 has no arithmetic of its own where the session trains, and is slow there."""
    return not session.call(_computes_bf16, session.use_gpu, gpu=session.use_gpu)


def _computes_bf16(use_gpu: bool) -> bool:
    import torch

    from kdfm_ray.training.measure import computes_bf16

    return computes_bf16(torch.device("cuda" if use_gpu else "cpu"))


def _find_or_measure(
    store_root: str,
    config: Config,
    facts: dict[str, Any],
    use_gpu: bool,
    threads: int,
    timed: bool,
) -> dict[str, Any]:
    import torch

    from kdfm_ray.training.measure import (
        CannotCompileError,
        Shape,
        candidates,
        describe,
        measure,
        measure_compiled,
        pays_to_compile,
    )
    from kdfm_ray.training.runtime import keeping_memory

    store = Store(store_root)
    device = torch.device("cuda" if use_gpu else "cpu")
    choices = candidates(config.train, device)
    if len(choices) == 1 and not timed:
        return {"choice": asdict(choices[0]), "measured": [], "reused": False}
    workers = max(1, config.scale.num_workers)
    height, width, channels = facts["image_shape"]
    batch_x = -(-config.train.batch_size // workers)
    shape = Shape(
        batch_x=batch_x,
        batch_u=batch_x * config.fixmatch.mu,
        image=(channels, height, width),
        updates=config.steps_of("longer"),
        same=config.fixmatch.strong_views == "all",
    )
    where = machine(device, threads)
    parts = {
        "version": VERSION,
        "machine": where,
        "model": config.model.model_dump(mode="json", exclude={"pretrained"}),
        "shape": [shape.batch_x, shape.batch_u, *shape.image],
        "candidates": [asdict(choice) for choice in choices],
    }

    def network() -> Any:
        return make_network(config, facts, seed=config.seed, pretrained="no")

    def timing(make: Callable[[], dict[Numerics, float]]) -> dict[str, Any]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with keeping_memory(device):  # as the training does
                seconds = make()
        finally:
            torch.set_num_threads(before)
        return {
            "choice": asdict(next(iter(seconds))),
            "measured": describe(seconds),
            "machine": where,
        }

    found = _remembered(
        store, parts, lambda: timing(lambda: measure(network, choices, shape, device))
    )
    if not (compile_is_open(config) and pays_to_compile(found["measured"][0]["seconds"], shape)):
        return found
    plain = Numerics(**found["choice"])

    try:
        compiled = _remembered(
            store,
            parts | {"compiled": asdict(plain), "same": shape.same},
            lambda: timing(lambda: measure_compiled(network, plain, shape, device)),
        )
    except CannotCompileError as error:
        return found | {"compile_error": str(error)}
    again = {row["numerics"] for row in compiled["measured"]}
    others = [row for row in found["measured"] if row["numerics"] not in again]
    return compiled | {"measured": [*compiled["measured"], *others]}


def _remembered(
    store: Store, parts: dict[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The record of that measurement: an earlier one's, or a new one's; ``reused`` says which."""
    key = content_hash(parts)
    artifact = store.find(STAGE, key)
    reused = artifact is not None
    if artifact is None:
        record = make()
        with store.writing(STAGE, key) as draft:
            draft.write_record(record)
        artifact = store.find(STAGE, key)  # of whoever was first, so that all agree
        assert artifact is not None
    return artifact.record() | {"reused": reused}


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """What the speed of an update depends on here."""
    import torch

    where = {
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "gpu": None,
    }
    if device.type == "cuda":
        where["gpu"] = torch.cuda.get_device_name(device)
    return where
