"""Warnings that a verdict deserves, and the lines a person reads."""

import pytest

from kdfm_ray.jobs.evaluate import verdict_warnings
from kdfm_ray.report.data import trusted_figures
from kdfm_ray.report.table import percent, time_line, trusted_line

GOOD = {"baseline": 0.7, "outer": 0.8, "inner": 0.9}


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        (GOOD, []),
        (GOOD | {"inner": 0.75}, ["below the outer one"]),
        ({"baseline": 0.95, "outer": 0.8, "inner": 0.9}, ["did not beat training on the"]),
        (GOOD | {"inner": 0.6}, ["below the outer one", "did not beat training on the"]),
        ({"outer": 0.8, "inner": 0.9}, []),
    ],
)
def test_the_report_says_when_it_was_not_worth_it(test, expected):
    warnings = verdict_warnings(test, dict.fromkeys(test, 0.5))
    assert len(warnings) == len(expected)
    for warning, part in zip(warnings, expected, strict=True):
        assert part in warning


def test_without_a_test_set_the_verdict_is_on_validation():
    none = dict.fromkeys(GOOD)
    assert verdict_warnings(none, GOOD) == []
    assert "below the outer one" in verdict_warnings(none, GOOD | {"inner": 0.75})[0]
    assert verdict_warnings(none, none) == []


def test_trusted_figures_are_those_of_the_last_filter():
    selection = {
        "filters": {
            "all": {"size": 100, "coverage": 1.0, "precision": 0.7},
            "confidence": {"size": 60, "coverage": 0.6, "precision": 0.8},
            "agreement": {"size": 50, "coverage": 0.5, "precision": 0.9},
        }
    }
    figures = trusted_figures(selection)
    assert figures == {"size": 50, "coverage": 0.5, "precision": 0.9, "precision_all": 0.7}
    line = trusted_line({"trusted": figures})
    assert line == (
        "trusted subset: 50 images, 50.00 % of those without a label; precision 90.00 % "
        "(of all pseudo labels: 70.00 %)"
    )
    unknown = figures | {"precision": None, "precision_all": None}
    assert "precision unknown" in trusted_line({"trusted": unknown})


def test_lines():
    assert percent(None) == "-"
    assert percent(0.91234) == "91.23 %"
    report = {"stages": {"outer": 12.34, "label": 1.0}, "reused": ["outer"], "total_seconds": 20.0}
    assert time_line(report) == (
        "time: FixMatch (outer) network 12.3 s (reused), pseudo labels 1.0 s, "
        "starting processes and the rest 19.0 s; "
        "in all 20.0 s"
    )
