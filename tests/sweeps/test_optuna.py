"""Settings from Optuna, in rounds."""

import pytest

from kdfm_ray import UserError, choice, loguniform, uniform
from kdfm_ray.config import Config, DataConfig
from kdfm_ray.sweeps.optuna_search import ROUND, Suggestions, corners
from kdfm_ray.sweeps.space import make_sweep, make_trials

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
        trials = suggestions.next_round(rows)
        if not trials:
            break
        for trial in trials:
            good = 0.2 * (trial.values["inner.loss"] == "sce")
            score = 0.7 + good - abs(trial.values["select.tau_select"] - 0.3)
            row = {"setting": trial.setting, "status": "finished", "val_accuracy": score}
            rows.append(row)
        first_seed = [trial for trial in trials if trial.seed == 0]
        given.append([trial.values for trial in first_seed])
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


def other(**space):
    return make_sweep(
        **{name: getattr(SWEEP, name) for name in ("name", "base", "search", "seeds")},
        space=space,
        samples=6,
    )


def test_lists_may_be_chosen_and_nothing_is_suggested_twice(tmp_path):
    sweep = other(**{"select.hidden_dims": choice((256, 128), (512,), (64, 32))})
    suggestions, found = Suggestions(sweep, tmp_path), []
    while trials := suggestions.next_round([]):
        found += [tuple(trial.values["select.hidden_dims"]) for trial in trials if trial.seed == 0]
    assert sorted(found) == [(64, 32), (256, 128), (512,)]  # there are no more, samples or not


def test_what_cannot_be_run_is_said_before_anything_is_suggested():
    sweep = other(**{"inner.loss": choice("ce", "xx"), "train.learning_rate": loguniform(1, 2)})
    with pytest.raises(UserError, match="xx"):
        make_trials(sweep, corners(sweep))
    ends = corners(other(**{"select.tau_select": uniform(0.5, 0.9), "inner.loss": choice("ce")}))
    assert [setting["select.tau_select"] for setting in ends] == [0.5, 0.9]


def test_a_round_that_cannot_be_run_is_not_kept(tmp_path):
    sweep = other(**{"inner.loss": choice("xx")})
    with pytest.raises(UserError, match="xx"):
        Suggestions(sweep, tmp_path).next_round([])
    assert not list(tmp_path.iterdir())
