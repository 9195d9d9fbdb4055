"""What changes a stage's key, and what must not."""

import pytest

from kdfm_ray import keys
from kdfm_ray.config import parse_config
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.pipeline import make_plan

NUMERICS = Numerics()


def plan(numerics=NUMERICS, **changes):
    values = {"recipe": "paper", "data": {"name": "digits", "num_labels": 100}}
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (values.setdefault(section, {}) if section else values)[field] = value
    return make_plan(parse_config(values), "dataset", "split", numerics)


STAGES = ("baseline", "outer", "labels", "trusted", "inner", "evaluation")


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({}, ()),
        ({"scale__num_workers": 4}, ()),
        ({"out": "elsewhere"}, ()),
        ({"train__log_every": 7}, ()),
        ({"label__num_actors": 3}, ()),
        ({"label__gpus_per_actor": 0.5}, ()),
        ({"data__root": "/elsewhere"}, ()),
        ({"data__device": "host"}, ()),
        ({"fixmatch__align": "none", "select__max_per_class": None}, ()),  # as before there was any
        ({"seed": 1}, STAGES),
        ({"train__steps": 5}, STAGES),
        ({"model__name": "wrn_28_2"}, STAGES),
        ({"numerics": Numerics("bf16")}, STAGES),
        ({"numerics": Numerics("fp32", "contiguous")}, STAGES),
        ({"numerics": Numerics("fp32", compile=True)}, STAGES),
        ({"train__precision": "bf16"}, ()),
        ({"train__memory_format": "contiguous"}, ()),
        ({"fixmatch__tau": 0.9}, STAGES[1:]),
        ({"fixmatch__strong_views": "masked"}, STAGES[1:]),
        ({"fixmatch__align": "labeled"}, STAGES[1:]),
        ({"fixmatch__thresholds": "fixed"}, ()),
        ({"fixmatch__thresholds": "adaptive"}, STAGES[1:]),
        ({"select__max_per_class": 50}, STAGES[3:]),
        ({"select__align": "none"}, ()),
        ({"select__align": "uniform"}, STAGES[3:]),
        ({"augment__cutout": 0.3}, STAGES[1:]),
        ({"select__tau_select": 0.7}, STAGES[3:]),
        ({"select__clusterer": "kmeans"}, STAGES[3:]),
        ({"inner__tau_inner": 0.9}, STAGES[4:]),
        ({"inner__loss": "sce"}, STAGES[4:]),
        ({"inner__init": "outer"}, STAGES[4:]),
        ({"inner__merge": "own_first", "inner__trust_until": 1.0}, ()),  # as before any rules
        ({"inner__merge": "agreement"}, STAGES[4:]),
        ({"inner__tau_override": 0.99}, STAGES[4:]),
        ({"inner__trust_until": 0.5}, STAGES[4:]),
    ],
)
def test_a_change_reaches_its_own_stage_and_those_after_it(changes, changed):
    before, after = plan(), plan(**changes)
    differs = [stage for stage in STAGES if getattr(before, stage) != getattr(after, stage)]
    assert differs == list(changed)


def test_without_the_baseline_there_is_no_key_for_it():
    assert plan(baseline=False).baseline is None
    assert plan(baseline=False).outer == plan().outer


def test_pretrained_weights_count_by_content_not_by_place(tmp_path):
    first, second, other = tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "c.pth"
    first.write_bytes(b"weights")
    second.write_bytes(b"weights")
    other.write_bytes(b"others")
    keys = [plan(model__pretrained=str(path)).outer for path in (first, second, other)]
    assert keys[0] == keys[1] != keys[2]


def test_pictures_have_a_key_of_their_own_for_each_end_of_a_run():
    def key(labels="l", trusted="t", inner="i", **select):
        values = {"data": {"name": "digits", "num_labels": 100}, "select": select}
        return keys.pictures_key(parse_config(values), labels, trusted, inner)

    assert key() == key()
    others = [key(labels="m"), key(trusted=None), key(inner=None), key(tau_select=0.7)]
    assert len({key(), *others}) == 5
