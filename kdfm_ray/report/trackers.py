"""Metrics of a run for MLflow or Weights & Biases, beside those of its folder.

Where they go, and under whose name, is theirs to say: ``MLFLOW_TRACKING_URI``,
``MLFLOW_EXPERIMENT_NAME``, ``WANDB_PROJECT``, ``WANDB_DIR`` and their other settings hold.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from kdfm_ray.config import Config
from kdfm_ray.report.run_folder import flat
from kdfm_ray.types import Emit, Event, UserError

PROJECT = "kdfm_ray"  # in W&B, where WANDB_PROJECT names no other


@runtime_checkable
class Tracker(Protocol):
    """Somebody who watches a run."""

    def log(self, event: Event) -> None:
        """Metrics of one network at one update: ``stage``, ``step``, and numbers by name."""

    def finish(self, report: Mapping[str, Any]) -> None:
        """What ``report.json`` says; the run is over."""

    def close(self, failed: bool) -> None:
        """Nothing more comes; to be called once, whether the run was finished or not."""


class Nobody:
    """No tracker was asked for."""

    def log(self, event: Event) -> None:
        """Nothing."""

    def finish(self, report: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self, failed: bool) -> None:
        """Nothing."""


class Mlflow:
    """A run of MLflow."""

    def __init__(self, name: str, config: Config) -> None:
        """Begin it, with the config as parameters."""
        import mlflow

        self._mlflow = mlflow
        mlflow.start_run(run_name=name)
        mlflow.log_params(flat(config.model_dump(mode="json")))

    def log(self, event: Event) -> None:
        """As ``outer/loss`` and so on."""
        self._mlflow.log_metrics(numbers(event), step=int(event["step"]))

    def finish(self, report: Mapping[str, Any]) -> None:
        """Accuracies on the test set, and the report itself."""
        self._mlflow.log_metrics(accuracies(report))
        self._mlflow.log_dict(dict(report), "report.json")

    def close(self, failed: bool) -> None:
        """End it."""
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, name: str, config: Config) -> None:
        """Begin it; each network has an axis of updates of its own."""
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            config=flat(config.model_dump(mode="json")),
        )
        for role in ("baseline", "outer", "longer", "inner"):
            self._run.define_metric(f"{role}/step")
            self._run.define_metric(f"{role}/*", step_metric=f"{role}/step")

    def log(self, event: Event) -> None:
        """As ``outer/loss`` and so on."""
        self._run.log(numbers(event) | {f"{event['stage']}/step": int(event["step"])})

    def finish(self, report: Mapping[str, Any]) -> None:
        """Accuracies on the test set."""
        self._run.summary.update(accuracies(report))

    def close(self, failed: bool) -> None:
        """End it."""
        self._run.finish(exit_code=int(failed))


class Careful:
    """A tracker whose troubles are told once and stop nothing; a context manager that ends it."""

    def __init__(self, tracker: Tracker, emit: Emit) -> None:
        """Watch ``tracker``; ``emit`` is told of its troubles."""
        self._tracker, self._emit, self._told = tracker, emit, False

    def __enter__(self) -> Careful:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._try("close", kind is not None)

    def log(self, event: Event) -> None:
        """Metrics, if the event carries some."""
        if "step" in event and ("loss" in event or "val_accuracy" in event):
            self._try("log", event)

    def finish(self, report: Mapping[str, Any]) -> None:
        """The report."""
        self._try("finish", report)

    def _try(self, name: str, *arguments: Any) -> None:
        try:
            getattr(self._tracker, name)(*arguments)
        except Exception as error:  # a server that is down, most likely
            if not self._told:
                self._told = True
                kind = type(self._tracker).__name__
                text = f"warning: {kind} does not take this ({error}); the run goes on"
                self._emit({"stage": "", "note": text})


def open_tracker(config: Config, name: str, emit: Emit) -> Careful:
    """Begin to watch a run as ``config.track`` says.

    Args:
        config: of the run.
        name: for people.
        emit: is told of troubles on the way.

    Raises:
        UserError: the package is not installed, or it cannot begin.
    """
    if config.track == "none":
        return Careful(Nobody(), emit)
    try:
        if config.track == "mlflow":
            return Careful(Mlflow(name, config), emit)
        return Careful(Wandb(name, config), emit)
    except ImportError as error:
        raise UserError(
            f"track = {config.track} needs a package that is not installed here ({error}): "
            f"pip install 'kdfm_ray[{config.track}]', or track none"
        ) from error
    except Exception as error:
        raise UserError(
            f"track = {config.track} cannot begin: {error}. Mend its settings, or use track none"
        ) from error


def numbers(event: Event) -> dict[str, float]:
    """Numbers of an event by ``stage/name``."""
    return {
        f"{event['stage']}/{name}": float(value)
        for name, value in event.items()
        if isinstance(value, int | float) and name not in ("step", "total")
    }


def accuracies(report: Mapping[str, Any]) -> dict[str, float]:
    """``test_accuracy/outer`` and so on, of those networks and sets that there are."""
    return {
        f"{kind}/{role}": value
        for kind in ("test_accuracy", "val_accuracy")
        for role, value in (report.get(kind) or {}).items()
        if value is not None
    }
