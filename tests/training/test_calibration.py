"""One temperature: found again where it is known, finite where every image is right."""

import numpy as np
import pytest

from kdfm_ray.training.calibration import HIGHEST, fit_temperature, loss_and_error


def draw(n, k, temperature, seed=0):
    """Logits, and classes that have the probabilities softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (n, k)).astype(np.float32)
    noise = rng.gumbel(size=(n, k))
    return logits, (logits / temperature + noise).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found(temperature):
    logits, truth = draw(20_000, 5, temperature)
    assert fit_temperature(logits, truth) == pytest.approx(temperature, rel=0.05)


def test_it_is_the_best_on_a_grid_and_calibrates():
    logits, truth = draw(5_000, 4, 2.0)
    best = fit_temperature(logits, truth)
    loss, error = loss_and_error(logits, truth, best)
    for other in np.linspace(0.5, 4, 50):
        assert loss <= loss_and_error(logits, truth, other)[0] + 1e-3
    assert error < 0.03 < loss_and_error(logits, truth, 1.0)[1]


def test_a_constant_of_each_row_changes_nothing():
    logits, truth = draw(500, 3, 1.5)
    shift = np.arange(500, dtype=np.float32)[:, None] / 8
    assert fit_temperature(logits + shift, truth) == pytest.approx(
        fit_temperature(logits, truth), rel=1e-4
    )


def test_a_few_images_that_are_all_right_do_not_make_it_certain():
    logits = 8 * np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    temperature = fit_temperature(logits, np.array([0, 1, 2, 0]))
    confidence = 1 / (1 + 2 * np.exp(-8 / temperature))
    assert confidence == pytest.approx(1 - 1 / 6, abs=1e-6)


def test_logits_that_say_nothing():
    logits, _ = draw(1_000, 3, 1.0)
    wrong = logits.argmin(axis=1)
    assert fit_temperature(logits, wrong) == HIGHEST
