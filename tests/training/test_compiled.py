"""Compiled updates equal plain ones, and networks of one process share their kernels."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "compiled.py"


def trained(device):
    """What ``tests/compiled.py`` prints."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), device], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_compiled_updates_equal_plain_ones():
    found = trained("cpu")
    plain = found["all"]["plain"]
    assert found["all"]["compiled"] == pytest.approx(plain, rel=1e-3)
    # Without batch norm these are the same updates.
    assert found["masked"]["compiled"] == pytest.approx(plain, rel=1e-3)
    assert found["all"]["compiled"] != plain, "nothing was compiled"
    none, one, two, _ = found["graphs"]
    assert none == 0
    assert one == two == 2, "weak views, and labeled with strong ones; once for all networks"
