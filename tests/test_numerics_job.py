"""What is measured once and remembered: numerics without compiling, and with it in long runs."""

from dataclasses import replace

import pytest

from kdfm_ray.config import parse_config
from kdfm_ray.jobs.numerics import _find_or_measure
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.training import measure

FACTS = {"image_shape": [16, 16, 1], "classes": ["cat", "dog"]}
PLAIN, OTHER = Numerics("fp32"), Numerics("fp32", "contiguous")


@pytest.fixture
def timed(monkeypatch):
    """Measurements that take no time: calls, and what the next one of compiled passes finds."""
    calls, finds = [], []

    def plain(make_network, choices, shape, device):
        calls.append("plain")
        return {PLAIN: 0.5, OTHER: 0.6}

    def compiled(make_network, choice, shape, device):
        calls.append(("compiled", str(choice), shape.same))
        found = finds.pop(0)
        if isinstance(found, Exception):
            raise found
        times = {replace(choice, compile=True): found, choice: 0.5}
        return dict(sorted(times.items(), key=lambda item: item[1]))

    monkeypatch.setattr(measure, "measure", plain)
    monkeypatch.setattr(measure, "measure_compiled", compiled)
    return calls, finds


def find(store, steps, **settings):
    train = {"steps": steps, "compile": settings.pop("compile", "auto")}
    values = {"data": {"name": "digits"}, "train": train, "fixmatch": settings}
    return _find_or_measure(str(store), parse_config(values), FACTS, False, 1, False)


def test_a_long_run_tries_the_compiled_form_of_the_fastest_once(tmp_path, timed):
    calls, finds = timed
    short = find(tmp_path, 100)
    assert (short["choice"]["compile"], short["reused"]) == (False, False)
    finds += [0.4]
    first = find(tmp_path, 20_000)  # 20,000 s in all
    assert Numerics(**first["choice"]) == replace(PLAIN, compile=True)
    assert [(row["numerics"], row["seconds"]) for row in first["measured"]] == [
        (f"{PLAIN} compiled", 0.4),
        (str(PLAIN), 0.5),
        (str(OTHER), 0.6),
    ]
    assert not first["reused"]
    assert find(tmp_path, 20_000) == first | {"reused": True}
    assert find(tmp_path, 100) == short | {"reused": True}, "as long as before, as before"
    assert calls == ["plain", ("compiled", str(PLAIN), True)]


def test_batches_of_any_size_are_measured_apart(tmp_path, timed):
    calls, finds = timed
    finds += [0.4, 0.7]
    assert find(tmp_path, 20_000)["choice"]["compile"]
    assert not find(tmp_path, 20_000, strong_views="masked")["choice"]["compile"]
    assert calls[1:] == [("compiled", str(PLAIN), True), ("compiled", str(PLAIN), False)]


def test_a_failure_is_told_and_not_remembered(tmp_path, timed):
    _, finds = timed
    finds += [measure.CannotCompileError("RuntimeError: no compiler"), 0.4]
    failed = find(tmp_path, 20_000)
    assert (Numerics(**failed["choice"]), len(failed["measured"])) == (PLAIN, 2)
    assert failed["compile_error"] == "RuntimeError: no compiler"
    found = find(tmp_path, 20_000)
    assert found["choice"]["compile"]
    assert "compile_error" not in found


def test_nothing_is_tried_where_the_config_says_no(tmp_path, timed):
    calls, _ = timed
    assert not find(tmp_path, 20_000, compile="off")["choice"]["compile"]
    assert calls == ["plain"]
