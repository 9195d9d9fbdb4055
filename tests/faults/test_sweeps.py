"""Sweeps that are disturbed: trials of several workers, stopped and killed on two CPUs; Ctrl-C.

Ray's issue 54305: a trial that was stopped kept what its training workers held, and all others
waited for ever.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import small_sweep

import kdfm_ray as kdfm
from kdfm_ray import Asha, grid
from kdfm_ray.sweeps.ledger import Ledger

SMALL = Path(small_sweep.__file__)

pytestmark = [
    pytest.mark.ray,
    pytest.mark.soak,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def check_it_went_on(folder):
    """All four trials are finished, and not all of them from nothing."""
    rows = pq.read_table(folder / "out" / "trials.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["finished"] * 4
    inner = [json.loads(p.read_text()) for p in (folder / "store/inner").glob("*/*/record.json")]
    assert len(inner) == 4
    assert any(record["resumed"] for record in inner)


def test_stopped_and_killed_trials_of_two_workers_give_all_back(tmp_path, monkeypatch):
    from kdfm_ray.jobs.session import prepare_environment

    prepare_environment(local=True)
    import ray
    from ray.util import placement_group_table

    from kdfm_ray.sweeps import asha, tuning

    seen, before = [], tuning._Relay.on_trial_result

    def disturb(self, iteration, trials, trial, result, **info):
        """Kill the first trial's process, and a training worker of the second."""
        before(self, iteration, trials, trial, result, **info)
        job = trial.config["job"]["id"]
        if "ended" in result or job in seen:
            return
        seen.append(job)
        if len(seen) == 1:
            os.kill(result["pid"], signal.SIGKILL)
        elif len(seen) == 2:
            workers = [
                p for p in psutil.process_iter() if "RayTrainWorker" in " ".join(_command(p))
            ]
            workers[0].kill()

    def stop_third(self, tune_controller, trial, result):
        """ASHA's decision, as it would be for a trial that is behind."""
        stop = seen.index(asha._name(trial)) in (2, 3) if asha._name(trial) in seen else False
        return "STOP" if stop and "step" in result else "CONTINUE"

    monkeypatch.setattr(tuning._Relay, "on_trial_result", disturb)
    monkeypatch.setattr(asha.GroupedScheduler, "on_trial_result", stop_third)
    quiet = {"log_to_driver": False, "logging_level": "error"}
    ray.init(address="local", num_cpus=2, include_dashboard=True, **quiet)
    try:
        result = kdfm.sweep(
            small_sweep.sweep_of(
                space={"inner.tau_inner": grid(0.5, 0.6, 0.7, 0.8, 0.95)}, seeds=(0,), asha=Asha()
            ),
            settings={"scale.num_workers": 2},
            out=tmp_path / "out",
            store=str(tmp_path / "store"),
            progress=False,
        )
        until = time.monotonic() + 60
        while ray.available_resources().get("CPU") != 2 and time.monotonic() < until:
            time.sleep(0.5)
        free = ray.available_resources()["CPU"]
        left = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
    finally:
        ray.shutdown()
    assert len(seen) == 5
    status = {row["trial_id"]: row["status"] for row in result.rows}
    assert [status[name] for name in seen] == [
        *("finished", "finished"),
        *("stopped", "stopped"),
        "finished",
    ]
    assert free == 2
    assert not left
    time.sleep(2)
    assert not [p for p in psutil.process_iter() if "RayTrainWorker" in " ".join(_command(p))]


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_ctrl_c_saves_the_trials_and_the_same_command_goes_on(tmp_path):
    command = [
        *(sys.executable, "-m", "kdfm_ray", "sweep", f"{SMALL}:thresholds"),
        *("--grid", "select.tau_select=0.1", "--train.steps", "200", "--asha", "off"),
        *("--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")),
    ]
    lines = tmp_path / "out" / "trials.jsonl"
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        while process.poll() is None:
            if lines.is_file() and lines.read_text().count('"validation"') >= 3:
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.1)
        assert process.wait(timeout=120) == 130
    text = (tmp_path / "log.txt").read_text()
    assert "stopping: trials save their state" in text
    assert "Traceback" not in text
    subprocess.run(command, check=True, capture_output=True)
    check_it_went_on(tmp_path)


def test_a_sweep_goes_on_after_its_own_ray_was_killed(tmp_path):
    """The raylet, as by a system that is short of memory."""
    command = [
        *(sys.executable, "-m", "kdfm_ray", "sweep", f"{SMALL}:thresholds"),
        *("--grid", "select.tau_select=0.1", "--train.steps", "200", "--asha", "off"),
        *("--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")),
    ]
    lines = tmp_path / "out" / "trials.jsonl"
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if lines.is_file() and lines.read_text().count('"validation"') >= 3:
                break
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        (raylet,) = [each for each in children if each.name() == "raylet"]
        raylet.kill()
        assert process.wait(timeout=120) == 1
    text = (tmp_path / "log.txt").read_text()
    assert "Ray's processes on this machine ended" in text
    assert "the same command goes on" in text
    assert "Traceback" not in text
    subprocess.run(command, check=True, capture_output=True)
    check_it_went_on(tmp_path)
    assert len(list((tmp_path / "store/outer").iterdir())) == 2


def test_the_smoke_sweep_of_a_newcomer(tmp_path):
    places = ["--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    started = time.monotonic()
    command = [sys.executable, "-m", "kdfm_ray", "sweep", "smoke", *places]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.monotonic() - started
    rows = pq.read_table(tmp_path / "out" / "trials.parquet").to_pylist()
    assert len(rows) == 8
    assert {row["status"] for row in rows} <= {"finished", "stopped"}
    assert len(list((tmp_path / "store/outer").iterdir())) == 2
    assert "networks to train: 2 outer, 8 inner at most" in done.stdout
    assert seconds < 240


def die_after(finished, folder):
    """The sweep by command line SIGKILLed when so many trials are finished."""
    command = [sys.executable, "-m", "kdfm_ray", "sweep", f"{SMALL}:thresholds"]
    places = ["--out", str(folder / "out"), "--store", str(folder / "store")]
    process = subprocess.Popen(
        [*command, *places],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 240
    lines = folder / "out" / "trials.jsonl"
    while time.monotonic() < until and process.poll() is None:
        text = lines.read_text() if lines.is_file() else ""
        if text.count('"status": "finished"') >= finished:
            break
        time.sleep(0.1)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.wait()


def test_a_sweep_goes_on_where_its_driver_was_killed(tmp_path):
    die_after(1, tmp_path)
    cut = Ledger(tmp_path / "out").records
    kept = [name for name, record in cut.items() if record.status == "finished"]
    assert kept
    result = kdfm.sweep(
        small_sweep.thresholds(),
        out=tmp_path / "out",
        store=str(tmp_path / "store"),
        progress=False,
    )
    rows = {row["trial_id"]: row for row in result.rows}
    for name in kept:
        assert rows[name]["status"] == "finished"
        assert rows[name]["seconds"] == round(cut[name].seconds, 3)  # not run again
    assert len([row for row in result.rows if row["status"] in ("finished", "stopped")]) == 4
    assert len(list((tmp_path / "store/outer").iterdir())) == 2  # none was trained again
