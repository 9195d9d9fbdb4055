"""What a sweep varies, and which trials come of it."""

import pytest

from experiments import SWEEPS, load_sweep
from kdfm_ray import Sweep, choice, grid, loguniform, uniform
from kdfm_ray.config import Config, DataConfig
from kdfm_ray.sweeps.space import make_sweep, make_trials
from kdfm_ray.types import UserError

BASE = Config(recipe="paper", data=DataConfig(name="digits", num_labels=100))


def sweep_of(**fields):
    return make_sweep(**({"name": "s", "base": BASE, "seeds": (0, 1)} | fields))


def test_a_grid_has_every_combination_with_every_seed():
    space = {"select.tau_select": grid(0.7, 0.8), "inner.loss": grid("ce", "sce", "gce")}
    trials = make_trials(sweep := sweep_of(space=space), sweep.settings())
    assert len(trials) == 2 * 3 * 2
    assert len({trial.id for trial in trials}) == 12
    assert len({trial.config.hash() for trial in trials}) == 12
    wanted = {
        (tau, loss, seed) for tau in (0.7, 0.8) for loss in ("ce", "sce", "gce") for seed in (0, 1)
    }
    got = {(t.config.select.tau_select, t.config.inner.loss, t.config.seed) for t in trials}
    assert got == wanted
    assert [trial.setting for trial in trials] == [n for n in range(6) for _ in range(2)]


def test_draws_lie_in_their_ranges_and_are_crossed_with_grids():
    space = {
        "train.learning_rate": loguniform(1e-3, 1e-1),
        "select.tau_select": uniform(0.5, 0.6),
        "fixmatch.mu": choice(1, 2),
        "inner.loss": grid("ce", "sce"),
    }
    sweep = sweep_of(space=space, samples=50)
    settings = sweep.settings()
    assert len(settings) == 100
    assert settings == sweep.settings()  # the same each time it is begun
    rates = [setting["train.learning_rate"] for setting in settings]
    assert all(1e-3 <= rate <= 1e-1 for rate in rates)
    assert 0.25 < sum(rate < 1e-2 for rate in rates) / len(rates) < 0.75  # half of the decades
    assert all(0.5 <= setting["select.tau_select"] <= 0.6 for setting in settings)
    assert {setting["fixmatch.mu"] for setting in settings} == {1, 2}
    other = sweep_of(space=space, samples=50, search_seed=1)
    assert other.settings() != settings


def test_trials_are_ranked_only_with_the_same_data_labels_split_and_seed():
    space = {"data.num_labels": grid(40, 100), "inner.loss": grid("ce", "sce")}
    trials = make_trials(sweep := sweep_of(space=space), sweep.settings())
    groups = {}
    for trial in trials:
        groups.setdefault(trial.group, []).append(trial)
    assert len(groups) == 4
    for group in groups.values():
        assert len({(t.config.data.num_labels, t.seed) for t in group}) == 1
        assert {t.config.inner.loss for t in group} == {"ce", "sce"}


def test_values_are_those_of_the_config_whatever_was_written():
    trials = make_trials(
        sweep := sweep_of(space={"select.tau_select": grid("0.5", 1)}), sweep.settings()
    )
    assert [trial.values["select.tau_select"] for trial in trials] == [0.5, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"space": {}}, "space is empty"),
        ({"space": {"select.tau": grid(0.5)}}, "select.tau is no config field; allowed there"),
        ({"space": {"sellect.tau": grid(0.5)}}, "there is no section 'sellect'"),
        ({"space": {"select": grid(0.5)}}, "select is no config field"),
        ({"space": {"seed": grid(0)}}, "give `seeds` instead"),
        ({"space": {"scale.num_workers": grid(1)}}, "changes no result"),
        ({"space": {"select.tau_select": uniform(0, 1)}}, "samples is missing"),
        ({"space": {"select.tau_select": grid(0.5)}, "samples": 3}, "nothing is drawn"),
        ({"space": {"select.tau_select": grid(0.5)}, "search": "optuna"}, "and no grid"),
        ({"space": {"select.tau_select": grid(0.5)}, "seeds": (1, 1)}, "each seed once"),
        ({"space": {"select.tau_select": grid(0.5)}, "seeds": (-1,)}, "seeds"),
        ({"space": {"select.tau_select": grid(0.5)}, "results": "r.jsonl"}, "other numerics"),
        ({"space": {"select.tau_select": grid(0.5)}, "asha": {"firts": 1}}, "did you mean 'first'"),
        ({"space": {"select.tau_select": grid(0.5)}, "nmae": 1}, "did you mean 'name'"),
        (
            {"space": {"train.steps": uniform(10, 20)}, "samples": 2},
            "train.steps takes no fractions",
        ),
        ({"space": {"data.num_labels": loguniform(10, 20)}, "samples": 2}, "use choice"),
        ({"cases": ({"inner.los": "ce"},)}, "cases: inner.los is no config field"),
        ({"cases": ({"seed": 1},)}, "cases: seed cannot be varied: give `seeds` instead"),
        (
            {"space": {"inner.loss": grid("ce")}, "cases": ({"inner.loss": "sce"},)},
            "cases: inner.loss is in space, too",
        ),
        (
            {
                "space": {"select.tau_select": uniform(0, 1)},
                "cases": ({"inner.loss": "sce"},),
                "samples": 2,
                "search": "optuna",
            },
            "search = optuna takes none",
        ),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(fields, told):
    with pytest.raises(UserError, match="the sweep has") as error:
        sweep_of(**fields)
    assert told in str(error.value)


def pinned(**data):
    """A base that a file of results goes with, but for what is given."""
    train = BASE.train.model_copy(update={"precision": "fp32", "memory_format": "channels_last"})
    return BASE.model_copy(update={"train": train, "data": BASE.data.model_copy(update=data)})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"base": pinned(labeled="pets"), "space": {"inner.loss": grid("ce")}}, "data.labeled"),
        ({"base": pinned(), "space": {"data.test": grid("a", "b")}}, "data.test"),
    ],
)
def test_results_are_not_recorded_where_a_config_does_not_say_what_was_read(fields, told):
    with pytest.raises(UserError, match="knows trials by their config") as error:
        sweep_of(results="r.jsonl", **fields)
    assert told in str(error.value)
    assert str(error.value).startswith("the sweep has 1 mistake:")
    sweep_of(**fields)
    sweep_of(base=pinned(), space={"model.pretrained": grid("no", "w.pt")}, results="r.jsonl")


def test_cases_meet_every_value_of_a_grid_and_leave_other_fields_as_in_the_base():
    sweep = sweep_of(
        space={"data.num_labels": grid(40, 100)},
        cases=({"inner.init": "outer"}, {"inner.loss": "sce", "select.tau_select": 0.5}, {}),
    )
    assert sweep.fields == [*("data.num_labels", "inner.init", "inner.loss", "select.tau_select")]
    rows = [tuple(setting.values()) for setting in sweep.settings()]
    cases = [("outer", "ce", 0.8), ("auto", "sce", 0.5), ("auto", "ce", 0.8)]
    assert rows == [(labels, *case) for labels in (40, 100) for case in cases]
    trials = make_trials(sweep, sweep.settings())
    assert len(trials) == 6 * 2
    assert trials[2].config.inner.loss == "sce"
    assert trials[2].config.select.tau_select == 0.5
    assert sweep_of(cases=({"inner.loss": "sce"},)).settings() == [{"inner.loss": "sce"}]


def test_cases_that_come_to_the_same_are_one_setting():
    sweep = sweep_of(cases=({}, {"inner.loss": "ce"}, {"inner.loss": "sce"}))
    assert [setting["inner.loss"] for setting in sweep.settings()] == ["ce", "sce"]


def test_a_sweep_is_the_same_as_before_there_were_cases_and_later_fields():
    """Folders of sweeps that were begun then go on."""
    same = sweep_of(space={"inner.loss": grid("ce", "sce")}).same_as()
    assert set(same) == {
        *("name", "base", "space", "seeds", "search", "samples", "search_seed", "asha")
    }
    assert "equal_compute" not in same["base"]
    assert "align" not in same["base"]["fixmatch"]
    assert sweep_of(cases=({"inner.steps": 5},)).same_as()["cases"] == [{"inner.steps": 5}]


def test_trials_that_cannot_run_are_all_told_at_once():
    space = {
        "select.tau_select": grid(0.5, 7.0),
        "model.name": grid("wrn_10_2", "resnot18"),
        "train.steps": grid(10, 0),
    }
    with pytest.raises(UserError) as error:
        make_trials(sweep := sweep_of(space=space), sweep.settings())
    text = str(error.value)
    assert "select.tau_select = 7.0" in text
    assert "resnot18" in text
    assert "train.steps = 0" in text
    assert text.count("resnot18") < 4  # each mistake once, not once a trial


def test_optuna_without_validation_images_is_refused():
    base = BASE.model_copy(update={"data": BASE.data.model_copy(update={"num_val": 0})})
    space = {"select.tau_select": uniform(0.1, 0.9)}
    sweep = sweep_of(base=base, space=space, search="optuna", samples=2)
    with pytest.raises(UserError, match=r"data.num_val = 0"):
        make_trials(sweep, [{"select.tau_select": 0.5}])


def test_tables_run_every_cell_in_full():
    assert load_sweep("table").asha is None
    assert load_sweep("table_cpu").asha is None


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_of_the_project_has_trials_a_cost_and_a_result(name, request):
    from experiments import describe

    if name == "evidence_pretrained":
        request.getfixturevalue("lite0_weights")
    sweep = load_sweep(name)
    assert isinstance(sweep, Sweep)
    assert sweep.name == name
    assert len(make_trials(sweep, sweep.settings())) >= 6
    about = describe(name)
    assert about.cost
    assert about.result
    assert f"kdfm sweep {name}" in SWEEPS[name].__doc__


def test_a_threshold_grid_of_four_by_four_has_one_outer_network_a_seed():
    from kdfm_ray.models.numerics import Numerics
    from kdfm_ray.pipeline import make_plan

    sweep = sweep_of(
        base=BASE,
        space={
            "select.tau_select": grid(0.7, 0.8, 0.9, 0.95),
            "inner.tau_inner": grid(0.7, 0.8, 0.9, 0.95),
        },
        seeds=(0,),
    )
    trials = make_trials(sweep, sweep.settings())
    plans = [make_plan(trial.config, "images", "split", Numerics()) for trial in trials]
    assert len({plan.outer for plan in plans}) == 1
    assert len({plan.labels for plan in plans}) == 1
    assert len({plan.trusted for plan in plans}) == 4
    assert len({plan.inner for plan in plans}) == 16


def test_noise_in_trusted_labels_makes_other_inner_networks_alone():
    from kdfm_ray.models.numerics import Numerics
    from kdfm_ray.pipeline import make_plan

    def plan(share):
        inner = BASE.inner.model_copy(update={"trusted_noise": share})
        config = BASE.model_copy(update={"inner": inner})
        return make_plan(config, "images", "split", Numerics())

    assert plan(0.2).trusted == plan(0.0).trusted
    assert len({plan(share).inner for share in (0.0, 0.2, 0.4)}) == 3
