"""The choice of numerics: the fastest, within the budget, and nothing that the device lacks."""

import pytest
import torch

from kdfm_ray.config import TrainConfig
from kdfm_ray.models.backbone import create_network
from kdfm_ray.models.numerics import Numerics, allowed_numerics
from kdfm_ray.training import measure as module
from kdfm_ray.training.measure import (
    CannotCompileError,
    Shape,
    candidates,
    measure,
    measure_compiled,
    pays_to_compile,
)

CPU = torch.device("cpu")
SHAPE = Shape(batch_x=2, batch_u=4, image=(1, 16, 16), updates=100)
ALL = allowed_numerics(TrainConfig())


@pytest.fixture
def scripted(monkeypatch):
    """A clock that stands still but for updates, whose seconds the test says."""
    now = [0.0]
    calls = []

    def install(seconds, start=0.0):
        def trial(network, numerics, shape, device):
            first = [True]

            def update():
                took = seconds[str(numerics)] + (start if first[0] else 0.0)
                first[0] = False
                now[0] += took
                calls.append(str(numerics))
                return took

            return update

        monkeypatch.setattr(module, "_trial", trial)
        monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
        return calls

    install.now = now
    return install


SECONDS = {
    "bf16 channels_last": 0.3,
    "fp32 channels_last": 0.2,
    "bf16 contiguous": 0.9,
    "fp32 contiguous": 0.25,
}


def test_the_fastest_comes_first_and_the_hopeless_are_timed_once(scripted):
    calls = scripted(SECONDS)
    found = measure(lambda: None, ALL, SHAPE, CPU, budget=1000)
    assert [str(choice) for choice in found] == sorted(SECONDS, key=SECONDS.get)
    assert list(found.values()) == pytest.approx(sorted(SECONDS.values()))
    assert calls.count("bf16 contiguous") == 1, "three times the best by then"
    assert calls.count("fp32 channels_last") == 1 + module.ROUNDS


@pytest.mark.parametrize(("budget", "tried"), [(0.1, 1), (2.5, 2), (1000, 4)])
def test_the_budget_holds_but_for_the_first(scripted, budget, tried):
    scripted(SECONDS, start=0.5)
    found = measure(lambda: None, ALL, Shape(2, 4, (1, 16, 16), 0), CPU, budget=budget)
    assert len(found) == tried
    assert scripted.now[0] <= max(budget, 0.5 + 2 * 0.3)


@pytest.mark.parametrize(("budget", "updates", "calls"), [(10, 0, 1), (13, 0, 1), (14, 0, 2)])
def test_a_first_choice_that_takes_all_the_time_has_one_update(scripted, budget, updates, calls):
    """Seven seconds an update: a second one is begun only where its time is left."""
    done = scripted(dict.fromkeys(SECONDS, 7.0))
    found = measure(lambda: None, ALL, Shape(2, 4, (1, 16, 16), updates), CPU, budget=budget)
    assert list(found.items()) == [(ALL[0], 7.0)]
    assert done == ["bf16 channels_last"] * calls
    assert scripted.now[0] <= max(7.0, budget)


def test_ten_times_as_slow_costs_one_update(scripted):
    """As bfloat16 where it is emulated: what comes after it is still tried."""
    calls = scripted(SECONDS | {"bf16 contiguous": 3.0}, start=0.1)
    found = measure(lambda: None, ALL, Shape(2, 4, (1, 16, 16), 0), CPU, budget=10)
    assert calls.count("bf16 contiguous") == 1
    assert next(iter(map(str, found))) == "fp32 channels_last"
    assert [str(choice) for choice in found][-1] == "bf16 contiguous"
    assert scripted.now[0] <= 10


def test_the_first_update_of_the_best_makes_kernels_too(scripted):
    """Compiled passes take a minute to make: the second choice is not hopeless for that."""
    calls = scripted(SECONDS, start=60.0)
    measure(lambda: None, ALL, SHAPE, CPU, budget=1000)
    assert calls.count("fp32 channels_last") == 1 + module.ROUNDS


def test_a_long_run_may_measure_for_longer(scripted):
    scripted(SECONDS, start=0.5)
    long = Shape(2, 4, (1, 16, 16), updates=100_000)
    assert len(measure(lambda: None, ALL, long, CPU, budget=0.1)) == 4


def test_bfloat16_is_tried_only_where_there_is_arithmetic_for_it(monkeypatch):
    monkeypatch.setattr(module.torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert {choice.precision for choice in candidates(TrainConfig(), CPU)} == {"fp32"}
    pinned = candidates(TrainConfig(precision="bf16"), CPU)  # slow, but the user's own wish
    assert {choice.precision for choice in pinned} == {"bf16"}
    monkeypatch.setattr(module.torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert candidates(TrainConfig(), CPU) == ALL


def test_on_a_real_network():
    def network():
        return create_network("wrn_10_2", num_classes=3, image_channels=1, image_size=16, seed=0)

    choices = [Numerics("fp32", "channels_last"), Numerics("fp32", "contiguous")]
    found = measure(network, choices, SHAPE, CPU, budget=100)  # of a machine with other work, too
    assert set(found) == set(choices)
    assert all(0 < seconds < 100 for seconds in found.values())
    assert list(found.values()) == sorted(found.values())


def test_what_does_not_fit_in_memory_is_left_out(scripted, monkeypatch):
    scripted(SECONDS)
    fits = module._trial

    def trial(network, numerics, shape, device):
        if numerics.precision == "fp32":
            raise torch.OutOfMemoryError("too much")
        return fits(network, numerics, shape, device)

    monkeypatch.setattr(module, "_trial", trial)
    assert [str(c) for c in measure(lambda: None, ALL, SHAPE, CPU, budget=1000)] == [
        "bf16 channels_last",
        "bf16 contiguous",
    ]
    only = [choice for choice in ALL if choice.precision == "fp32"]
    with pytest.raises(torch.OutOfMemoryError):
        measure(lambda: None, only, SHAPE, CPU)


def test_a_run_of_an_hour_does_not_try_to_compile_and_one_of_two_does():
    updates = Shape(16, 112, (3, 32, 32), updates=7200)
    assert not pays_to_compile(0.5, updates)
    assert pays_to_compile(1.0, updates)


PLAIN = Numerics("bf16")


@pytest.mark.parametrize(("seconds", "first"), [(0.25, True), (0.295, False), (0.4, False)])
def test_compiled_passes_have_to_be_faster_by_more_than_noise(scripted, seconds, first):
    calls = scripted({str(PLAIN): 0.3, f"{PLAIN} compiled": seconds}, start=60.0)
    found = measure_compiled(lambda: None, PLAIN, SHAPE, CPU)
    compiled = Numerics("bf16", compile=True)
    assert found == pytest.approx({PLAIN: 0.3, compiled: seconds}), "without what made the kernels"
    assert next(iter(found)) == (compiled if first else PLAIN)
    assert calls[2:4] == [str(PLAIN), str(compiled)], "they take turns"


@pytest.mark.parametrize("same", [True, False])
def test_kernels_are_those_of_the_training(monkeypatch, same):
    seen = []

    def compiled(self, module, **how):
        seen.append(how)
        return module

    monkeypatch.setattr(Numerics, "compiled", compiled)

    def network():
        return create_network("wrn_10_2", num_classes=3, image_channels=1, image_size=16, seed=0)

    measure_compiled(network, Numerics("fp32"), Shape(2, 4, (1, 16, 16), 100, same), CPU)
    assert seen == [{"same_shapes": same}] * 2


def test_a_compiler_that_fails_is_quoted(scripted, monkeypatch):
    scripted({str(PLAIN): 0.3})
    works = module._trial

    def trial(network, numerics, shape, device):
        def fails():
            raise RuntimeError("No C++ compiler found\nmore of it")

        return fails if numerics.compile else works(network, numerics, shape, device)

    monkeypatch.setattr(module, "_trial", trial)
    with pytest.raises(CannotCompileError, match=r"^RuntimeError: No C\+\+ compiler found$"):
        measure_compiled(lambda: None, PLAIN, SHAPE, CPU)
