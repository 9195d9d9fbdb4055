"""A sweep for tests, which a command line can load, too: digits, a few updates a network."""

from kdfm_ray import Asha, grid
from kdfm_ray.config import (
    Config,
    DataConfig,
    FaultConfig,
    FixMatchConfig,
    ModelConfig,
    SelectConfig,
    TrainConfig,
)
from kdfm_ray.sweeps.space import make_sweep

BASE = Config(
    recipe="paper",
    baseline=False,
    data=DataConfig(name="digits", num_labels=100, image_size=16),
    model=ModelConfig(name="wrn_10_2"),
    train=TrainConfig(
        steps=30, batch_size=16, eval_every=10, precision="fp32", memory_format="channels_last"
    ),
    fixmatch=FixMatchConfig(mu=2),
    select=SelectConfig(tau_select=0.1, pretrain_epochs=1, update_interval=10, max_iter=20),
    faults=FaultConfig(save_every=5),
)


def sweep_of(**fields):
    return make_sweep(**({"name": "test", "base": BASE, "seeds": (0, 1)} | fields))


def longer():
    """Two trials with the outer network of ``thresholds``, and longer inner ones."""
    inner = BASE.inner.model_copy(update={"steps": 150})
    base = BASE.model_copy(update={"inner": inner})
    return sweep_of(base=base, space={"inner.tau_inner": grid(0.6, 0.7)}, seeds=(0,))


def thresholds():
    """Eight trials, half of which find nothing to trust."""
    space = {"select.tau_select": grid(0.1, 1.0), "inner.tau_inner": grid(0.5, 0.95)}
    return sweep_of(space=space, asha=Asha(first=0.5))
