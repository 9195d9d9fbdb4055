"""Compiled updates equal plain ones, and networks of one process share their kernels."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "compiled.py"


def trained(device, *strong_views):
    """What ``tests/compiled.py`` prints."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), device, *strong_views],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_compiled_updates_equal_plain_ones():
    found = trained("cpu", "all", "all", "masked")
    for compiled in found["compiled"]:  # without batch norm masked updates are the same
        assert compiled["losses"] == pytest.approx(found["plain"], rel=1e-3)
    graphs = [compiled["graphs"] for compiled in found["compiled"]]
    assert graphs[:2] == [2, 2], "weak views, and labeled with strong ones; once for all networks"
    assert graphs[2] > 2, "masked batches have sizes of their own"
