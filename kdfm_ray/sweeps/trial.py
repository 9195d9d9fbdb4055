"""What the process of a trial does: the pipeline, with its validations reported to Tune.

A trial of one worker trains in that very process, which holds the CPUs or the GPU; one of several
starts them by Ray Train, and holds nothing itself.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdfm_ray.config import Config
from kdfm_ray.pipeline import Finished, run
from kdfm_ray.sweeps.asha import SCORE, STEP
from kdfm_ray.types import Emit, Event, RunFailed, Stopped, UserError


@dataclass(frozen=True)
class Job:
    """What one process is given to do.

    Attributes:
        id: of the trial, or of the outer network.
        configs: of the trial; or one for each trusted subset of an outer network, which are made
            so that trials need not wait for each other.
        numerics: of each config, as resolved for the sweep.
        until_trusted: do not train the inner network.
    """

    id: str
    configs: tuple[Config, ...]
    numerics: tuple[str, ...]
    until_trusted: bool = False


class Bell:
    """The actor that tells all trials to save their state and end."""

    def __init__(self) -> None:
        """Nothing is to stop yet."""
        self._rung = False

    def ring(self) -> None:
        """Have them end."""
        self._rung = True

    def is_rung(self) -> bool:
        """Whether they are to."""
        return self._rung


def run_job(tune_config: dict[str, Any], *, jobs: Sequence[Job], bell: Any, emit: Emit) -> None:
    """The function that Tune runs; reports validations, and at the end what became of the job.

    Args:
        tune_config: ``job``: its ``number`` in ``jobs``, and its ``id`` for the scheduler.
        jobs: all of the sweep.
        bell: the actor ``Bell``.
        emit: takes the events of the pipeline, with the trial's id.

    A process that dies is started again by Tune, and goes on from its network's saved state; what
    another try would not mend is reported as ``failed``.
    """
    from ray import tune

    # The process is used again: a stopped trial may still be writing its state.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "600")
    job, started = jobs[tune_config["job"]["number"]], time.perf_counter()

    def seconds() -> float:
        return time.perf_counter() - started

    def tell(event: Event) -> None:
        emit(event | {"trial": job.id})
        if event.get("stage") == "inner" and event.get(SCORE) is not None and not job.until_trusted:
            tune.report({STEP: event[STEP], SCORE: event[SCORE], "seconds": seconds()})

    try:
        ended = _do(job, bell, tell)
    except Stopped:
        ended = {"status": "interrupted"}
    except (UserError, FloatingPointError, RunFailed) as error:
        ended = {"status": "failed", "why": str(error)}
    except OSError:
        raise  # a full disk, a lost connection: Tune tries again
    except Exception as error:
        if "CUDA" in str(error):
            raise  # the process is of no use any more: Tune starts another
        why = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        ended = {"status": "failed", "why": why}
    tune.report({"ended": ended | {"seconds": seconds()}})


def _do(job: Job, bell: Any, tell: Emit) -> dict[str, Any]:
    import ray

    def is_over() -> bool:
        over: bool = ray.get(bell.is_rung.remote())
        return over

    if is_over():
        raise Stopped
    if not job.until_trusted:
        finished = run(job.configs[0], tell, begun_with=job.numerics[0], stop=is_over)
        return {"status": "finished", "row": row_of(finished)}
    empty = []
    for config, numerics in zip(job.configs, job.numerics, strict=True):
        if is_over():
            raise Stopped
        try:
            run(config, tell, begun_with=numerics, stop=is_over, until_trusted=True)
        except UserError as error:
            # Most likely a threshold that leaves nothing: the other subsets may be fine, and the
            # trials of this one will say so themselves.
            empty.append(str(error))
    if len(empty) == len(job.configs):
        return {"status": "failed", "why": empty[0]}
    return {"status": "finished", "row": {"warnings": empty}}


def row_of(finished: Finished) -> dict[str, Any]:
    """What a sweep keeps of a finished run; accuracies, coverage and precision are fractions."""
    records = {stage: artifact.record() for stage, artifact in finished.artifacts.items()}
    tested = records["evaluation"]["test_accuracy"]
    selection, inner = records["trusted"], records["inner"]
    filters = selection["filters"]
    return {
        "split_hash": records["split"]["split_hash"],
        "val_accuracy": inner["val_accuracy"],
        "test_accuracy": tested["inner"],
        "outer_val_accuracy": records["outer"]["val_accuracy"],
        "outer_test_accuracy": tested["outer"],
        "longer_val_accuracy": records.get("longer", {}).get("val_accuracy"),
        "longer_test_accuracy": tested.get("longer"),
        "labeled_only_val_accuracy": records.get("baseline", {}).get("val_accuracy"),
        "labeled_only_test_accuracy": tested.get("baseline"),
        "label_precision": filters["all"]["precision"],
        "confident_size": filters["confidence"]["size"],
        "confident_precision": filters["confidence"]["precision"],
        "trusted_size": filters["agreement"]["size"],
        "trusted_coverage": filters["agreement"]["coverage"],
        "trusted_precision": filters["agreement"]["precision"],
        "cluster_agreement": selection["agreement"]["end"],
        "cluster_nmi": selection["nmi"],
        "cluster_fallback": selection["fallback"],
        "inner_seconds": inner["seconds"],
        "outer_seconds": records["outer"]["seconds"],
    }
