"""KD-FixMatch on Ray: image classifiers from few labels and many unlabeled images.

import kdfm_ray as kdfm
run = kdfm.train("digits")
run.report["test_accuracy"]
"""

from kdfm_ray.api import Run, load, sweep, train
from kdfm_ray.config import Config
from kdfm_ray.sweeps.space import Asha, Sweep, choice, grid, loguniform, uniform
from kdfm_ray.types import RunFailed, Stopped, UserError

__all__ = [
    "Asha",
    "Config",
    "Run",
    "RunFailed",
    "Stopped",
    "Sweep",
    "UserError",
    "choice",
    "grid",
    "load",
    "loguniform",
    "sweep",
    "train",
    "uniform",
]
__version__ = "0.1.0"
