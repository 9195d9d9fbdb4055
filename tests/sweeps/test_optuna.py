"""Settings from Optuna, in rounds."""

import pytest

from kdfm_ray import choice, uniform
from kdfm_ray.config import Config, DataConfig
from kdfm_ray.sweeps.optuna_search import ROUND, Suggestions
from kdfm_ray.sweeps.space import make_sweep

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
pytest.importorskip("optuna")

SWEEP = make_sweep(
    name="s",
    base=Config(data=DataConfig(name="digits")),
    space={"select.tau_select": uniform(0, 1), "inner.loss": choice("ce", "sce")},
    search="optuna",
    samples=26,
)


def play(folder, rounds=100):
    """Rounds until none is left; the best tau_select is 0.3, and sce is worth 0.2."""
    suggestions, given, rows = Suggestions(SWEEP, folder), [], []
    for _ in range(rounds):
        settings = suggestions.next_round(rows)
        if not settings:
            break
        for number, setting in enumerate(settings, start=suggestions.first):
            good = 0.2 * (setting["inner.loss"] == "sce")
            score = 0.7 + good - abs(setting["select.tau_select"] - 0.3)
            rows += [{"setting": number, "status": "finished", "val_accuracy": score}] * 2
        given.append(settings)
    return given


def test_it_suggests_as_many_as_are_asked_for_and_finds_the_good_ones(tmp_path):
    given = play(tmp_path)
    settings = [setting for each in given for setting in each]
    assert len(settings) == 26
    assert [len(each) for each in given] == [ROUND] * 6 + [2]
    late = settings[16:]
    assert sum(setting["inner.loss"] == "sce" for setting in late) > 0.6 * len(late)
    near = [abs(setting["select.tau_select"] - 0.3) for setting in late]
    assert sum(near) / len(near) < 0.25  # at random it is 0.29


def test_it_goes_on_with_what_it_has_suggested(tmp_path):
    (tmp_path / "a").mkdir()
    first = play(tmp_path / "a", rounds=3)
    assert play(tmp_path / "a")[:3] == first
    assert len([s for each in play(tmp_path / "a") for s in each]) == 26
