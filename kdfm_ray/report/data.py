"""The numbers of a run, finished or not, as the dict that ``report.json`` holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

from kdfm_ray.config import Config
from kdfm_ray.pipeline import Left
from kdfm_ray.report.facts import hardware, rerun_command, versions
from kdfm_ray.report.verdict import verdict
from kdfm_ray.types import Role

# How the stages of the store are called where a person reads them.
SHOWN = {
    "baseline": "labeled_only",
    "outer": "outer",
    "longer": "fixmatch_longer",
    "inner": "inner",
}
# Where the time of each stage is recorded.
TIMED = {
    "data": "dataset",
    "baseline": "baseline",
    "outer": "outer",
    "longer": "longer",
    "inner": "inner",
    "label": "labels",
    "select": "trusted",
    "evaluate": "evaluation",
    "pictures": "pictures",
}


def make_report(found: Left, failed: str | None = None) -> dict[str, Any]:
    """Collect what the stages recorded.

    ``finished`` says whether the run came to its end, ``failed`` why it did not (``None`` else).
    ``scores`` and ``compared`` (the inner network with each other one) are those of
    ``training.scores``, on the images that ``scored_on`` says: ``test``, ``val`` or none.
    Accuracies, coverage and precision are fractions; seconds are those a stage took when it was
    done, which for a reused one was in an earlier run. ``test_accuracy`` values are ``None``
    without a test set. Labeled images count in no trusted figure. Of stages that are not done,
    figures are ``None`` or left out. ``resolved`` lists the fields that the config left open
    (``field``, ``value``, ``why``); ``resolved_command`` sets them all.
    """
    artifacts = found.artifacts
    records = {stage: artifact.record() for stage, artifact in artifacts.items()}
    facts = found.facts | records.get("dataset", {}) | records.get("split", {})
    prepared = found.prepared
    if prepared is not None:
        facts |= prepared.facts
    given = found.given or found.config
    roles = [role for role in SHOWN if role in records]
    evaluation = records.get("evaluation", {})
    tested = evaluation.get("test_accuracy", {})
    test = {SHOWN[role]: tested.get(role) for role in roles}
    val = {SHOWN[role]: records[role]["val_accuracy"] for role in roles}
    selection = records.get("trusted")
    notes = [note for role in roles for note in records[role]["notes"]]
    report = {
        "finished": failed is None,
        "failed": failed,
        "test_accuracy": test,
        "val_accuracy": val,
        "scored_on": evaluation.get("scored_on"),
        "scores": _shown(evaluation.get("scores", {})),
        "compared": _shown(evaluation.get("compared", {})),
        "trusted": None if selection is None else trusted_figures(selection),
        "selection": selection,
        "overridden": records.get("pictures", {}).get("overridden"),
        "data": {
            "name": facts.get("name", found.config.data.name or "folders"),
            "classes": facts.get("classes"),
            "image_shape": facts.get("image_shape"),
            "content_hash": facts.get("content_hash"),
            "labeled": facts.get("num_labeled"),
            "unlabeled": facts.get("num_unlabeled"),
            "val": facts.get("num_val"),
            "labeled_per_class": facts.get("labeled_per_class"),
            "val_per_class": facts.get("val_per_class"),
            "test": facts.get("num_test"),
            "files": facts.get("num_files"),
            "skipped": [*facts.get("skipped", ()), *facts.get("others", ())],
            "non_images": facts.get("non_images", {}),
            "duplicates": facts.get("duplicates", []),
            "duplicate_counts": facts.get("duplicate_counts", {}),
        },
        "stages": {
            stage: records[artifact]["seconds"]
            for stage, artifact in TIMED.items()
            if artifact in records
        },
        "images_per_second": _speeds(found.config, records),
        "reused": found.reused,
        "resumed": {SHOWN[role]: records[role].get("resumed", []) for role in roles},
        "total_seconds": found.seconds,
        "training": {SHOWN[role]: records[role]["last"] for role in roles},
        "numerics": found.numerics,
        "resources": found.resources,
        "command": rerun_command(given),
        "resolved": [asdict(each) for each in prepared.choices] if prepared else [],
        "resolved_command": rerun_command(found.config),
        "seed": found.config.seed,
        "split_seed": found.config.split_seed,
        "config_hash": given.hash(),
        "split_hash": facts.get("split_hash"),
        "keys": {stage: artifact.key for stage, artifact in artifacts.items()},
        "versions": versions(),
        "hardware": hardware(),
        "warnings": [
            *([prepared.found.warning] if prepared and prepared.found.warning else ()),
            *facts.get("data_warnings", ()),
            *facts.get("split_warnings", ()),
            *dict.fromkeys(notes),
            *(
                text
                for stage in (*roles, "labels", "trusted", "evaluation")
                for text in records.get(stage, {}).get("warnings", ())
            ),
        ],
    }
    return report | {"verdict": verdict(report)}


def _shown(by_role: dict[str, Any]) -> dict[str, Any]:
    return {SHOWN[role]: found for role, found in by_role.items()}


def _speeds(config: Config, records: dict[str, Any]) -> dict[str, float]:
    """Images a second of each network and of labeling, over its whole time.

    Of a network they are labeled images and both views of unlabeled ones; validation and start-up
    are in the time.
    """
    labeled, views = config.train.batch_size, 1 + 2 * config.fixmatch.mu
    images = dict.fromkeys(SHOWN, labeled * views) | {"baseline": labeled}  # an update
    speeds = {
        role: config.steps_of(cast(Role, role)) * images[role] / records[role]["seconds"]
        for role in SHOWN
        if role in records
    }
    if "count" in records.get("labels", {}):
        speeds["label"] = records["labels"]["count"] / records["labels"]["seconds"]
    return speeds


def trusted_figures(selection: dict[str, Any]) -> dict[str, Any]:
    """Size, coverage and precision of the trusted subset, beside all pseudo labels' precision."""
    agreed = selection["filters"]["agreement"]
    return {
        "size": agreed["size"],
        "coverage": agreed["coverage"],
        "precision": agreed["precision"],
        "precision_all": selection["filters"]["all"]["precision"],
    }
