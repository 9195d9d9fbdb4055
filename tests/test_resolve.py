"""What own images leave open is filled from what was found, and nothing else is touched."""

import pytest

from experiments import PRESETS
from kdfm_ray.config import Config, default_values, parse_config
from kdfm_ray.report.facts import rerun_command
from kdfm_ray.resolve import Found, describe_classes, fill, open_fields, read_found
from kdfm_ray.types import UserError

OPEN = [
    "data.image_size",
    "model.pretrained",
    "select.align_strength",
    "train.eval_every",
    "train.learning_rate",
    "train.log_every",
    "train.steps",
]


def own(**sections):
    return parse_config({"data": {"labeled": "a", "unlabeled": "b"}} | sections)


def found(labeled=450, unlabeled=50_000, pretrained="no"):
    return Found(pretrained, "because", 96, "the median", labeled, unlabeled)


def filled(config, **values):
    return fill(config, found(**values))


def test_own_images_leave_seven_fields_open_and_all_are_filled():
    config, choices = filled(own())
    assert sorted(open_fields(own())) == OPEN == sorted(each.field for each in choices)
    assert open_fields(config) == []
    assert (config.data.image_size, config.model.pretrained) == (96, "no")
    assert config.train.steps == 4500, "20 x 50,000 / 224 = 4,464"
    assert (config.train.eval_every, config.train.log_every) == (450, 45)
    assert config.train.learning_rate == 0.03
    assert config.select.align_strength == 0.5, "nobody knows the proportions"
    assert {each.why for each in choices} >= {
        "20 passes over 50,000 unlabeled images, 224 an update",
        "sgd from random weights",
        "because",
        "the median",
    }
    assert fill(config, found(unlabeled=9)) == (config, ()), "nothing is filled twice"


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "steps"),
    [
        (40, 400, 500),
        (450, 10_000, 890),
        (9_000, 10_000, 5600),  # 20 x 9,000 / 32
        (450, 10_000_000, 20_000),
    ],
)
def test_steps_follow_the_larger_set_within_limits(labeled, unlabeled, steps):
    config, _ = filled(own(), labeled=labeled, unlabeled=unlabeled)
    assert config.train.steps == steps


def test_steps_at_a_limit_say_so():
    _, choices = filled(own(), labeled=40, unlabeled=400)
    (text,) = [str(each) for each in choices if each.field == "train.steps"]
    assert text == (
        "train.steps = 500: the least; 20 passes over 400 unlabeled images, 224 an update, "
        "would be 36"
    )


def test_steps_follow_the_batch():
    config, _ = filled(own(train={"batch_size": 16}, fixmatch={"mu": 14}))
    assert config.train.steps == 4500, "224 an update, too"
    config, _ = filled(own(train={"batch_size": 64}))
    assert config.train.steps == 2200


@pytest.mark.parametrize(
    ("optimizer", "pretrained", "rate"),
    [("sgd", "no", 0.03), ("sgd", "yes", 0.01), ("adamw", "no", 1e-3), ("adamw", "yes", 3e-4)],
)
def test_the_learning_rate_fits_the_optimizer_and_the_start(optimizer, pretrained, rate):
    config, _ = filled(own(train={"optimizer": optimizer}), pretrained=pretrained)
    assert config.train.learning_rate == rate


def test_what_is_set_stays():
    given = own(
        train={"steps": 70, "learning_rate": 0.5, "eval_every": 7},
        model={"pretrained": "no"},
    )
    config, choices = filled(given, pretrained="yes")
    filled_in = ["data.image_size", "select.align_strength", "train.log_every"]
    assert sorted(each.field for each in choices) == filled_in
    assert config.train.steps == 70
    assert config.steps_of("longer") == 140
    assert config.model.pretrained == "no"
    small, _ = filled(own(train={"steps": 70}))
    assert (small.train.eval_every, small.train.log_every) == (10, 10)


def test_named_data_sets_leave_nothing_open():
    config = parse_config({"data": {"name": "digits"}})
    assert open_fields(config) == []
    assert (config.train.steps, config.train.eval_every, config.train.log_every) == (2000, 500, 20)
    assert (config.train.learning_rate, config.model.pretrained) == (0.03, "no")
    for preset in PRESETS.values():
        assert open_fields(preset()) == []


def test_hashes_are_those_of_before_fields_could_be_open():
    """Recorded results are found by them; these were printed by the version before."""
    digits = parse_config({"recipe": "paper", "data": {"name": "digits"}})
    assert digits.hash() == "6ce92fa9fb5af352"
    assert PRESETS["cifar10_400"]().hash() == "f4b10e0bc0f0677b"


def test_flags_start_from_open_fields():
    values = default_values()
    assert values["train"]["steps"] is None
    assert values["model"]["pretrained"] == "auto"


def test_filled_values_that_do_not_go_with_set_ones_are_told():
    with pytest.raises(
        UserError, match=r"warmup_steps = 600 must be below the updates of the outer network = 250"
    ):
        filled(own(train={"warmup_steps": 600}), unlabeled=100)
    with pytest.raises(UserError, match=r"inner.init = pretrained needs weights"):
        filled(own(inner={"init": "pretrained"}))
    assert filled(own(inner={"init": "pretrained"}), pretrained="yes")


@pytest.mark.parametrize("align", ["none", "uniform", "labeled"])
def test_proportions_count_whole_where_they_are_known_and_are_told_where_not(align):
    config, choices = filled(own(select={"align": align}))
    (choice,) = [each for each in choices if each.field == "select.align_strength"]
    half = align == "labeled"
    assert (config.select.align_strength == 0.5, bool(choice.why)) == (half, half)
    assert parse_config({"data": {"name": "digits"}}).select.align_strength == 1


def test_steps_that_are_open_are_not_read():
    with pytest.raises(AssertionError):
        own().steps_of("outer")


def test_the_command_has_what_was_given_and_the_other_one_all():
    given = own()
    config, _ = filled(given)
    assert "--train" not in rerun_command(given)
    for flag in ("--train.steps 4500", "--data.image-size 96", "--model.pretrained no"):
        assert flag in rerun_command(config)
    named = Config(data={"name": "digits"})
    assert rerun_command(named) == "kdfm train --data.name digits"
    paper = Config(recipe="paper", data={"name": "digits"})
    assert rerun_command(paper) == "kdfm train --recipe paper --data.name digits"


def test_findings_survive_json_and_damage():
    import json
    from dataclasses import asdict

    assert read_found(json.loads(json.dumps(asdict(found())))) == found()
    assert read_found(None) is None
    assert read_found({"size": 3}) is None


def test_classes_are_told_in_a_line_and_a_warning_when_they_are_far_from_equal():
    names = ["cat", "dog", "owl"]
    assert describe_classes(names, [9, 10, 8], [1, 1, 1], aligned=False) == [
        "labeled images (training + validation): cat 9 + 1, dog 10 + 1, owl 8 + 1"
    ]
    line, warning = describe_classes(names, [90, 10, 8], [0, 0, 0], aligned=False)
    assert line == "labeled images (training): cat 90, dog 10, owl 8"
    assert "cat has 90 labeled images, owl 8" in warning
    assert "--fixmatch.align labeled and --select.max-per-class" in warning
    assert "align" not in describe_classes(names, [90, 10, 8], [0, 0, 0], aligned=True)[1]
    *_, told = describe_classes(names, [9, 10, 8], [0, 0, 0], aligned=False, assumed="labeled")
    assert "in these proportions, too; if they are far from that, give --select.align none" in told
    many = [f"c{k:02d}" for k in range(20)]
    (line,) = describe_classes(many, list(range(20, 40)), [0] * 20, aligned=False)
    assert line == "labeled images (training): 20 classes, from c00 20 to c19 39"
