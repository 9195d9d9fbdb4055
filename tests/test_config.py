"""The config: what it refuses, what its hash covers, and that it survives a file."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import PRESETS
from kdfm_ray.config import (
    RECIPES,
    Config,
    DataConfig,
    InnerConfig,
    SelectConfig,
    parse_config,
    set_recipe,
)
from kdfm_ray.types import UserError


def values(**sections):
    return {"data": {"name": "digits"}} | sections


def test_all_mistakes_are_reported_together():
    bad = values(train={"steps": 0, "stepz": 3}, model={"norm": "layer"}, sed=1)
    with pytest.raises(UserError) as error:
        parse_config(bad)
    text = str(error.value)
    assert "4 mistakes" in text
    assert "train.steps = 0" in text
    assert "train.stepz: unknown; did you mean 'steps'?" in text
    assert "model.norm = 'layer'" in text
    assert "sed: unknown; did you mean 'seed'?" in text


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"data": {}}, "no data: give data.name"),
        ({"data": {"name": "digits", "labeled": "x"}}, "not both"),
        (values(scale={"num_workers": 40}), "scale.num_workers = 40 is more than the 32 labeled"),
        (values(inner={"init": "pretrained"}), "inner.init = pretrained needs weights"),
        (
            values(train={"norm_sync": "global"}, scale={"use_gpu": "no"}),
            "SyncBatchNorm, which runs on GPUs only",
        ),
        (values(train={"steps": 5, "warmup_steps": 5}), "must be below the updates of the"),
        (values(fixmatch={"tau": 1.5}), "fixmatch.tau = 1.5"),
        (
            values(recipe="paper", inner={"tau_override": 0.9}),
            "tau_override = 0.9 lies below tau_inner = 0.95",
        ),
        (
            values(inner={"merge": "agreement", "tau_override": 0.99}),
            "merge = agreement overrides nothing",
        ),
        (values(train={"learning_rate": float("nan")}), "train.learning_rate"),
        ("text", "mistake"),
    ],
)
def test_what_does_not_fit_is_refused(bad, message):
    with pytest.raises(UserError, match="mistake") as error:
        parse_config(bad)
    assert message in str(error.value)


def paths(values, prefix=()):
    for name, value in values.items():
        yield (*prefix, name)
        if isinstance(value, dict):
            yield from paths(value, (*prefix, name))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
PATHS = sorted(paths(Config(data={"name": "digits"}).model_dump(mode="json")))


@given(
    st.lists(
        st.tuples(st.sampled_from(PATHS), st.sampled_from(["set", "add", "drop"]), ANYTHING),
        min_size=1,
        max_size=4,
    )
)
@settings(deadline=None, max_examples=300)
def test_no_config_gives_a_traceback(changes):
    """It is taken or refused with a text, and one that is taken survives a file."""
    changed = Config(data={"name": "digits"}).model_dump(mode="json")
    for path, what, value in changes:
        parent = changed
        for name in path[:-1]:
            parent = parent.get(name) if isinstance(parent, dict) else None
        if not isinstance(parent, dict):
            continue
        if what == "drop":
            parent.pop(path[-1], None)
        else:
            parent[path[-1] + ("x" if what == "add" else "")] = value
    try:
        config = parse_config(changed)
    except UserError:
        return
    assert parse_config(config.model_dump(mode="json")) == config
    assert len(config.hash()) == 16


@given(ANYTHING)
@settings(deadline=None, max_examples=100)
def test_what_is_no_config_at_all_is_refused_with_a_text(values):
    with pytest.raises(UserError, match="mistake"):
        parse_config(values)


def test_a_store_with_a_password_is_refused_without_printing_it():
    with pytest.raises(UserError, match="password in it would be") as error:
        parse_config(values(store="s3://me:hunter2@bucket/prefix"))
    assert "hunter2" not in str(error.value)
    assert parse_config(values(store="s3://bucket/a@b")).store == "s3://bucket/a@b"


def test_is_frozen():
    config = parse_config(values())
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


def test_hash_covers_the_result_and_nothing_else():
    config = parse_config(values())
    same = parse_config(
        values(
            out="elsewhere",
            store="s3://bucket",
            scale={"num_workers": 4},
            label={"num_actors": 3, "gpus_per_actor": 0.5},
        )
        | {"data": {"name": "digits", "root": "/somewhere"}}
    )
    assert config.hash() == same.hash()
    assert config.hash() != parse_config(values(seed=1)).hash()
    assert config.hash() != parse_config(values(select={"tau_select": 0.7})).hash()


def test_survives_yaml(tmp_path):
    config = parse_config(values(select={"hidden_dims": [64, 32]}, inner={"loss": "sce"}))
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert Config.from_yaml(path) == config


def test_every_field_is_described():
    def check(model, name):
        for field, info in model.model_fields.items():
            if hasattr(info.annotation, "model_fields"):
                check(info.annotation, f"{name}.{field}")
            else:
                assert info.description, f"{name}.{field}"

    check(Config, "config")


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_complete_configs(name):
    assert isinstance(PRESETS[name](), Config)


def test_the_papers_grid_is_there():
    for data in ("cifar10", "svhn", "cifar100", "food101"):
        for num_labels in (400, 1000, 2000, 4000):
            config = PRESETS[f"{data}_{num_labels}"]()
            assert (config.data.name, config.data.num_labels) == (data, num_labels)
            assert (config.select.tau_select, config.inner.tau_inner) == (0.80, 0.95)


def digits(**sections):
    return parse_config({"data": {"name": "digits"}} | sections)


def test_a_recipe_fills_what_is_not_given():
    config = digits(select={"share": 0.4}, train={"steps": 100})
    assert config.recipe == "graph"
    assert (config.select.labels, config.select.share) == ("graph", 0.4)
    assert (config.inner.init, config.inner.loss) == ("outer", "sce")
    assert config.train.outer_share == 0.25
    assert digits(recipe="paper").select.labels == "network"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_the_same_however_it_is_asked_for(name):
    put = digits().model_dump(mode="json")
    set_recipe(put, name)
    assert put == digits(recipe=name).model_dump(mode="json")
    assert put == Config(recipe=name, data=DataConfig(name="digits")).model_dump(mode="json")
    assert set(RECIPES[name]) == set(RECIPES["graph"])


def test_the_papers_recipe_is_that_of_the_sections():
    sections = digits(recipe="paper")
    assert sections.select == SelectConfig(align_strength=1.0)
    assert sections.inner == InnerConfig()


def test_a_recipe_survives_yaml_and_changes_no_hash_by_its_name(tmp_path):
    config = digits(inner={"loss": "ce"})
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert Config.from_yaml(path) == config
    assert config.model_copy(update={"recipe": "paper"}).hash() == config.hash()
    assert digits(recipe="paper").hash() != digits().hash()


def test_an_unknown_recipe_is_told():
    with pytest.raises(UserError, match="recipe = 'mine'"):
        digits(recipe="mine")
    with pytest.raises(UserError, match=r"recipe = \[\]"):
        digits(recipe=[])


@pytest.mark.parametrize(
    ("train", "inner", "steps"),
    [
        ({"steps": 100}, {}, (100, 100, 100, 200)),
        ({"steps": 100}, {"steps": 30}, (100, 100, 30, 130)),
        ({"steps": 100, "outer_share": 0.25}, {}, (100, 50, 150, 200)),
        ({"steps": 100, "outer_share": 0.25}, {"steps": 30}, (100, 100, 30, 130)),
        ({"steps": 3, "outer_share": 0.25}, {}, (3, 2, 4, 6)),
        ({"steps": 1, "outer_share": 0.01}, {}, (1, 1, 1, 2)),
        ({"steps": 1, "outer_share": 0.99}, {}, (1, 1, 1, 2)),
    ],
)
def test_updates_of_each_network(train, inner, steps):
    config = digits(recipe="paper", train=train, inner=inner)
    roles = ("baseline", "outer", "inner", "longer")
    assert tuple(config.steps_of(role) for role in roles) == steps


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"train": {"steps": 100, "outer_share": 0.1, "warmup_steps": 30}},
            "must be below the updates of the outer network = 20",
        ),
    ],
)
def test_updates_that_do_not_fit_are_refused(sections, message):
    with pytest.raises(UserError, match=message):
        digits(**sections)
