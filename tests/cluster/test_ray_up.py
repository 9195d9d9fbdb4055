"""`ray up`, jobs and the end of a cluster over an sshd on loopback: ray_up.py, for real."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray_up

MISSING = [tool for tool in ("sshd", "ssh", "ssh-keygen", "rsync") if not ray_up.which(tool)]


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_up_three_jobs_and_down():
    script = Path(ray_up.__file__)
    paths = [str(ray_up.ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "left: none" in done.stdout


def test_it_runs_nothing_that_ends_the_processes_of_others(tmp_path, monkeypatch):
    """`ray stop` and `ray down` signal by name: no step may be one, nor be left in the file."""
    demo = ray_up.Demo(tmp_path, dict.fromkeys(ray_up.USES, 1))
    demo._write_cluster_file()
    written = Path(demo.cluster_file).read_text()
    assert "ray stop" not in written
    assert "ray start --head" in " ".join(written.split())
    assert "--num-cpus=0" not in written  # it is the only machine
    source = Path(ray_up.__file__).read_text().partition('"""\n\nfrom')[2]
    for words in ('"ray", "stop"', '"ray", "down"', "pkill", "killall"):
        assert words not in source
