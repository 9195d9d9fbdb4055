"""Runs of the command line that are disturbed from outside, and compared with one that was not.

The run is a small one on scikit-learn's digits, in float32 on one thread, where nothing but the
disturbance could change a bit.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
STAGES = ("outer", "label", "select", "inner")
FLAGS = {
    "recipe": "paper",  # which has the longest stages
    "scale.cpus-per-worker": 1,
    "train.steps": 60,
    "train.batch-size": 16,
    "train.eval-every": 20,
    "train.log-every": 5,
    "train.precision": "fp32",
    "train.memory-format": "channels_last",
    "fixmatch.mu": 2,
    "data.image-size": 16,
    "label.batch-size": 64,
    "select.tau-select": 0.1,
    "select.pretrain-epochs": 2,
    "select.max-iter": 300,
    "faults.save-every": 7,
    "baseline": "no",
}
# What may differ between two runs of which one was disturbed: times, and how it went.
APART = {
    *(
        "seconds",
        "part_seconds",
        "total_seconds",
        "stages",
        "reused",
        "resumed",
        "images_per_second",
    ),
    *("hardware", "resources", "numerics"),
    *("command", "verdict"),  # which name the folders, and the time it took
}


def command(folder, **flags):
    """``kdfm train digits`` into ``folder``, with a store of its own there."""
    given = FLAGS | {name.replace("__", ".").replace("_", "-"): v for name, v in flags.items()}
    text = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    places = ["--out", str(folder / "run"), "--store", str(folder / "store")]
    return [sys.executable, "-m", "kdfm_ray", "train", "digits", *text, *places]


@dataclass
class Disturbed:
    """A run under way; a context manager that leaves no process behind."""

    folder: Path
    flags: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)

    def __enter__(self):
        clean = {name: value for name, value in os.environ.items() if name != LOOPBACK}
        self._log = (self.folder / "log.txt").open("a")
        self.process = subprocess.Popen(
            command(self.folder, **self.flags),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=clean | {"OMP_NUM_THREADS": "1"} | self.environment,
            start_new_session=True,  # a Ctrl-C of the test's own is not for it
            preexec_fn=_hear_interrupts,
        )
        return self

    def __exit__(self, *exc):
        kill([self.process, *self.children()] if self.process.poll() is None else [])
        self.process.wait()
        self._log.close()

    def children(self):
        """All processes that the run has started."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def named(self, *names):
        """Those whose command line has one of the names; Ray's actors bear their class."""
        return [child for child in self.children() if any(n in command_line(child) for n in names)]

    def wait_for_stage(self, stage, seconds=120):
        """Return once the stage has begun (``False``: the run ended before)."""
        deadline = time.monotonic() + seconds
        while not self.has_begun(stage):
            assert time.monotonic() < deadline, f"{stage} did not begin: {self.log()}"
            if self.process.poll() is not None:
                return False
            time.sleep(0.02)
        return True

    def wait_for_state(self, role, seconds=120):
        """Return when a state of that network has just been saved."""
        deadline = time.monotonic() + seconds
        while not any((self.folder / "store").glob(f"states/{role}/*/*/manifest.json")):
            assert time.monotonic() < deadline, f"no state of {role}: {self.log()}"
            assert self.process.poll() is None, self.log()
            time.sleep(0.02)

    def has_begun(self, stage):
        store = self.folder / "store"
        if stage in ("outer", "inner"):
            metrics = self.folder / "run" / "metrics.jsonl"
            return metrics.is_file() and f'"stage": "{stage}"' in metrics.read_text()
        if stage == "label":
            return any(store.glob("states/labels/*")) or any(store.glob("labels/*/*"))
        return any(store.glob("labels/*/manifest.json"))

    def signal(self, number):
        """To the whole group, as a terminal sends it."""
        os.killpg(self.process.pid, number)

    def log(self):
        """All that this and earlier tries have printed."""
        return (self.folder / "log.txt").read_text()

    def finish(self, seconds=240):
        """Wait for its end; the exit status."""
        return self.process.wait(timeout=seconds)


def _hear_interrupts():
    """Also where the tests run in the background of a shell, which has their children ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def command_line(process):
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def kill(processes):
    """SIGKILL by process id, and wait until they are gone."""
    for process in processes:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def run_to_end(folder, tries=6, **flags):
    """Run the command until it ends well, as a user or a scheduler would."""
    for _ in range(tries):
        with Disturbed(folder, flags) as run:
            if run.finish() == 0:
                return
    raise AssertionError(run.log()[-3000:])


def outcome(folder):
    """What a run leaves that must not depend on how it went: weights, metrics, report."""
    run = folder / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": (run / "model.safetensors").read_bytes(),
        "report": strip(json.loads((run / "report.json").read_text())),
        "metrics": sorted((strip(line) for line in lines), key=json.dumps),
    }


def resumed(folder, role):
    """After which updates that network's training went on from a saved state."""
    return json.loads((folder / "run" / "report.json").read_text())["resumed"][role]


def strip(value):
    if isinstance(value, dict):
        return {name: strip(item) for name, item in value.items() if name not in APART}
    return [strip(item) for item in value] if isinstance(value, list) else value


def assert_same(found, expected):
    for name in ("report", "metrics", "weights"):
        assert found[name] == expected[name], name
