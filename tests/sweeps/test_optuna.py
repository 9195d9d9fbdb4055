"""Settings from Optuna, in rounds."""

import json

import pytest

from kdfm_ray import Asha, UserError, choice, loguniform, uniform
from kdfm_ray.config import Config, DataConfig
from kdfm_ray.sweeps.ledger import KEPT
from kdfm_ray.sweeps.optuna_search import ROUND, Suggestions, check_values
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


def test_values_that_can_never_be_run_are_said_before_anything_is_suggested():
    space = {"inner.loss": choice("ce", "xx"), "train.learning_rate": loguniform(1, 2)}
    with pytest.raises(UserError, match="xx") as error:
        check_values(other(**space))
    assert "learning_rate" not in str(error.value)
    with pytest.raises(UserError, match=r"select.tau_select = 1.5"):
        check_values(other(**{"select.tau_select": uniform(0.5, 1.5), "inner.loss": choice("ce")}))


def crossed():
    """Of four combinations one leaves ASHA no validation, whichever way the values are written."""
    return other(**{"train.steps": choice(100, 400), "train.eval_every": choice(200, 50)}).changed(
        asha=Asha()
    )


def test_values_of_which_some_combinations_can_be_run_are_fine():
    check_values(crossed())


def test_suggestions_that_cannot_be_run_are_replaced_by_others(tmp_path):
    told, found = [], []
    suggestions = Suggestions(crossed(), tmp_path, note=told.append)
    while trials := suggestions.next_round([]):
        found += [(t.values["train.steps"], t.values["train.eval_every"]) for t in trials]
    assert sorted(set(found)) == [(100, 50), (400, 50), (400, 200)]
    assert "1 suggestion cannot be run" in told[0]
    assert "train.eval_every = 200 leaves none" in told[0]
    again = Suggestions(crossed(), tmp_path)
    assert len(again.next_round([])) == len(found)  # a seed each of three settings


def test_suggestions_that_cannot_be_planned_are_not_kept(tmp_path):
    sweep = other(**{"data.num_labels": choice(5, 100), "inner.loss": choice("ce", "sce")})
    planned = []

    def check(trials):
        planned.append([trial.config.data.num_labels for trial in trials])
        if trials[0].config.data.num_labels == 5:
            raise UserError("5 labels for 10 classes")

    suggestions = Suggestions(sweep, tmp_path, check)
    found = suggestions.next_round([])
    assert {trial.config.data.num_labels for trial in found} == {100}
    assert len(planned) == 4  # each suggestion once, though Optuna makes some again and again
    assert suggestions.next_round([]) == []
    assert len(json.loads((tmp_path / KEPT).read_text())) == 1


def test_where_nothing_can_be_planned_that_is_said_and_nothing_is_kept(tmp_path):
    def check(trials):
        raise UserError("no such images")

    for _ in range(2):
        with pytest.raises(UserError, match=r"nothing that can be run.*no such images"):
            Suggestions(SWEEP, tmp_path, check).next_round([])
    assert not list(tmp_path.iterdir())


def test_a_round_that_cannot_be_run_is_not_kept(tmp_path):
    sweep = other(**{"inner.loss": choice("xx")})
    with pytest.raises(UserError, match="xx"):
        Suggestions(sweep, tmp_path).next_round([])
    assert not list(tmp_path.iterdir())
