"""Was it worth it: KD-FixMatch against FixMatch and labeled-only training, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = {
    "outer": "FixMatch",
    "fixmatch_longer": "FixMatch with the updates of both networks",
    "labeled_only": "training on the labeled images alone",
}
ON = {"test": "test", "val": "validation"}


def verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    """Judge the numbers of a report.

    Returns:
        ``worth``: ``yes`` (above FixMatch, and its 95 % interval with it), ``no`` (below FixMatch
        likewise, or not above labeled-only training), ``unclear``, or ``unknown``; ``headline``;
        ``sentences``. FixMatch is that of equal compute where the run has trained it. Against an
        outer network that trained for less than the inner one nothing is worth it yet.
    """
    scores = _accuracies(report)
    rival = "fixmatch_longer" if "fixmatch_longer" in scores else "outer"
    ours, fixmatch = scores.get("inner"), scores.get(rival)
    if ours is None or fixmatch is None:
        return _unknown(report)
    alone, name = scores.get("labeled_only"), NAMES[rival]
    found = report.get("compared", {}).get(rival) or {}
    low, high = found.get("low", 0.0), found.get("high", 0.0)
    gain = f"{points(abs(ours - fixmatch))} points {'above' if ours >= fixmatch else 'below'}"
    if alone is not None and ours <= alone:
        worth = "no"
        headline = (
            "Not worth it: KD-FixMatch is no better than training on the labeled images alone"
        )
    elif high < 0:
        worth, headline = "no", f"Not worth it: KD-FixMatch is {gain} {name}"
    elif rival == "outer" and ours > fixmatch and (short := _shorter(report)):
        worth = "unclear"
        headline = f"Not known yet: KD-FixMatch is {gain} its outer network, {short}"
    elif low > 0:
        worth, headline = "yes", f"Worth it: KD-FixMatch is {gain} {name}"
    elif ours == fixmatch:
        worth, headline = "unclear", f"Not told apart: KD-FixMatch and {name} are equally good"
    else:
        worth = "unclear"
        headline = f"Not told apart: KD-FixMatch is {gain} {name}, which may be chance"
    return {
        "worth": worth,
        "headline": headline,
        "sentences": [*_comparisons(report, scores), *_about_time(report), *_about_images(report)],
    }


def updates(report: Mapping[str, Any], role: str) -> int | None:
    """For how many updates a network trained."""
    found: int | None = report.get("training", {}).get(role, {}).get("step")
    return found


def _shorter(report: Mapping[str, Any]) -> str:
    """That the outer network had fewer updates than the inner one; empty where it had not."""
    outer, inner = updates(report, "outer"), updates(report, "inner")
    if outer is None or inner is None or outer >= inner:
        return ""
    return (
        f"which had {outer:,} of the {outer + inner:,} updates (equal_compute yes trains a "
        "FixMatch of all)"
    )


def points(difference: float) -> str:
    """A difference of fractions in percentage points."""
    return f"{100 * difference:.2f}"


def _accuracies(report: Mapping[str, Any]) -> dict[str, float]:
    """By network: on the test set, or on validation where there is none."""
    test, val = report["test_accuracy"], report["val_accuracy"]
    return {role: found for role in val if (found := _first(test.get(role), val[role])) is not None}


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _comparisons(report: Mapping[str, Any], scores: Mapping[str, float]) -> list[str]:
    sentences = []
    for role, name in NAMES.items():
        if role not in scores:
            continue
        gain = scores["inner"] - scores[role]
        sentence = f"Against {name}: {100 * gain:+.2f} points"
        found = report.get("compared", {}).get(role)
        if found:
            sentence += (
                f" (95 % interval {100 * found['low']:+.2f} to {100 * found['high']:+.2f}): it "
                f"alone is right on {found['better']:,} images, and alone wrong on "
                f"{found['worse']:,}"
            )
        sentences.append(f"{sentence}.")
    return sentences


def _about_time(report: Mapping[str, Any]) -> list[str]:
    seconds = report["stages"]
    if not {"outer", "label", "select", "inner"} <= set(seconds):
        return []
    more = seconds["label"] + seconds["select"] + seconds["inner"]
    told = (
        f"Labels, selection and the second network took {duration(more)}, upon "
        f"{duration(seconds['outer'])} for FixMatch alone"
    )
    if "longer" in seconds:
        return [f"{told}; FixMatch with the updates of both took {duration(seconds['longer'])}."]
    return [
        f"{told}; FixMatch with so much more training was not run here (equal_compute yes does)."
    ]


def _about_images(report: Mapping[str, Any]) -> list[str]:
    on = report.get("scored_on")
    if on not in ON:
        return []
    count = next(iter(report["scores"].values()))["count"]
    said = [
        f"Measured on {count:,} {ON[on]} images; the interval is for other images of their kind. "
        "Another seed may change more than that: repeat with several before you rely on a small "
        "difference."
    ]
    if on == "val":
        said.append("There is no test set: give data.test for a verdict on images apart.")
    return said


def _unknown(report: Mapping[str, Any]) -> dict[str, Any]:
    if "inner" not in report["val_accuracy"]:
        headline = "No verdict yet: the KD-FixMatch network was not finished"
    else:
        headline = "No verdict: there is neither a test set nor validation images"
    return {"worth": "unknown", "headline": headline, "sentences": _about_time(report)}


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
