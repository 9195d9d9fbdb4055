"""Was it worth it, and the command that does it again."""

import shlex

import pytest

from kdfm_ray.cli import parse_flags
from kdfm_ray.config import default_values, parse_config
from kdfm_ray.report.facts import rerun_command
from kdfm_ray.report.verdict import verdict

CLEAR = {"low": 0.01, "high": 0.05, "better": 30, "worse": 2, "difference": 0.03}
OPEN = CLEAR | {"low": -0.01}
BELOW = CLEAR | {"low": -0.05, "high": -0.01}


def report(inner=0.83, outer=0.8, alone=0.7, compared=CLEAR, **more):
    test = {"labeled_only": alone, "outer": outer, "inner": inner}
    return {
        "test_accuracy": test,
        "val_accuracy": test,
        "scored_on": "test",
        "scores": {role: {"count": 1000} for role in test},
        "compared": {"outer": compared},
        "stages": {"outer": 100.0, "label": 5.0, "select": 15.0, "inner": 110.0},
    } | more


SHORT = {"outer": {"step": 50}, "inner": {"step": 150}}
EQUAL = {"outer": {"step": 100}, "inner": {"step": 100}}


def longer(**more):
    made = report(**more)
    made["val_accuracy"] = made["val_accuracy"] | {"fixmatch_longer": 0.8}
    made["test_accuracy"] = made["val_accuracy"]
    return made | {"compared": {"fixmatch_longer": CLEAR}}


@pytest.mark.parametrize(
    ("given", "worth", "said"),
    [
        (report(), "yes", "Worth it: KD-FixMatch is 3.00 points above FixMatch"),
        (report(compared=OPEN), "unclear", "3.00 points above FixMatch, which may be chance"),
        (report(inner=0.77, compared=BELOW), "no", "3.00 points below FixMatch"),
        (report(alone=0.83), "no", "no better than training on the labeled images alone"),
        (report(inner=0.8, compared=OPEN), "unclear", "equally good"),
        (report(compared=None), "unclear", "may be chance"),
        (report(inner=None), "unknown", "neither a test set nor validation images"),
        (report(val_accuracy={"outer": 0.8}), "unknown", "was not finished"),
        (report(training=SHORT), "unclear", "its outer network, which had 50 of the 200 updates"),
        (report(training=SHORT, alone=0.83), "no", "on the labeled images alone"),
        (report(training=SHORT, inner=0.77, compared=BELOW), "no", "3.00 points below FixMatch"),
        (report(training=EQUAL), "yes", "3.00 points above FixMatch"),
        (longer(training=SHORT), "yes", "3.00 points above FixMatch with the updates of both"),
    ],
)
def test_the_headline(given, worth, said):
    found = verdict(given)
    assert found["worth"] == worth
    assert said in found["headline"]


def test_the_sentences_name_the_price_and_the_doubt():
    said = " ".join(verdict(report())["sentences"])
    assert "95 % interval +1.00 to +5.00" in said
    assert "right on 30 images, and alone wrong on 2" in said
    assert "took 2.2 min, upon 1.7 min" in said
    assert "1,000 test images" in said
    none = dict.fromkeys(("labeled_only", "outer", "inner"))
    on_val = verdict(report(test_accuracy=none, scored_on="val"))
    assert on_val["worth"] == "yes"
    assert "There is no test set" in on_val["sentences"][-1]


def test_the_command_gives_the_same_config():
    values = default_values()
    values["data"] |= {"name": "digits", "num_labels": 40, "root": "/a folder/with spaces"}
    values["train"] |= {"steps": 33, "precision": "fp32"}
    values["baseline"] = False
    values["select"]["clusterer"] = "none"
    config = parse_config(values)
    words = shlex.split(rerun_command(config))
    assert words[:2] == ["kdfm", "train"]
    again = default_values()
    assert parse_flags(words[2:], again) == []
    assert parse_config(again) == config
