"""Whatever dies, the same command goes on and ends with the same network and report.

``make test`` has one of each kind; ``make soak`` kills at random moments of all stages.
"""

import random
import signal
import time

import psutil
import pytest
from harness import (
    STAGES,
    Disturbed,
    assert_same,
    kill,
    outcome,
    resumed,
    run_to_end,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# What is killed: a name in the command lines of Ray's processes, or the driver itself.
WORKER, RAY = ("RayTrainWorker",), ("raylet/raylet", "gcs_server")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that nobody disturbs, in one process: workers or none, the result is the same."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_to_end(folder, tries=1, scale__num_workers=0)
    return outcome(folder)


@pytest.mark.soak
def test_a_killed_training_worker_is_started_again_and_goes_on(tmp_path, undisturbed):
    with Disturbed(tmp_path) as run:
        run.wait_for_state("outer")
        kill(run.named(*WORKER))
        assert run.finish() == 0, run.log()
        assert "starting the workers again from the last saved state" in run.log()
        assert "going on after update" in run.log()
    assert resumed(tmp_path, "outer")
    assert_same(outcome(tmp_path), undisturbed)


@pytest.mark.soak
def test_ctrl_c_saves_stops_all_and_one_process_goes_on(tmp_path, undisturbed):
    with Disturbed(tmp_path) as run:
        run.wait_for_state("outer")
        children = run.children()
        run.signal(signal.SIGINT)
        assert run.finish(60) == 130, run.log()
        assert "stopping after this update" in run.log()
        assert "of the outer network; its state is saved, and the same command goes" in run.log()
        assert "Traceback" not in run.log()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    run_to_end(tmp_path, tries=1, scale__num_workers=0)
    assert len(resumed(tmp_path, "outer")) == 1
    assert_same(outcome(tmp_path), undisturbed)


@pytest.mark.soak
def test_one_process_killed_in_two_stages_of_one_run(tmp_path, undisturbed):
    """Of all four stages: see the soak below."""
    for stage in ("outer", "select"):
        with Disturbed(tmp_path, {"scale.num-workers": 0}) as run:
            assert run.wait_for_stage(stage)
            time.sleep(0.1)
            kill([run.process])
    run_to_end(tmp_path, tries=1, scale__num_workers=0)
    assert_same(outcome(tmp_path), undisturbed)


@pytest.mark.soak
def test_two_runs_at_once_compute_each_stage_once(tmp_path, undisturbed):
    """The same command twice with one store: one of them computes, the other waits and reads."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / "store").symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "store").mkdir()
    alone = {"scale.num-workers": 0}
    with Disturbed(folders[0], alone) as first, Disturbed(folders[1], alone) as second:
        assert first.finish() == 0, first.log()
        assert second.finish() == 0, second.log()
        logs = first.log() + second.log()
    assert "another run (process" in logs
    for stage in ("outer", "inner"):
        assert len(list((tmp_path / "store" / stage).glob("*/*/record.json"))) == 1
    for folder in folders:
        assert_same(outcome(folder), undisturbed)


def has_ended(log):
    """Whether the last stage was over, and the signal came too late."""
    return "test set: done" in log


SOAK = [
    (stage, what)
    for stage in STAGES
    for what in ("driver", "process", "ray", "interrupt", "in one process")
]


@pytest.mark.soak
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("stage", "what"), SOAK)
def test_disturbed_at_a_random_moment(tmp_path, undisturbed, stage, what):
    """In one of the stages, by one of the disasters; then the command is given again to the end."""
    dice = random.Random(f"{stage} {what} {time.time()}")
    moment, twice = dice.uniform(0, 2), dice.random() < 0.5
    alone = {"scale.num-workers": 0} if what == "in one process" else {}
    started = time.monotonic()
    with Disturbed(tmp_path, alone) as run:
        assert run.wait_for_stage(stage)
        time.sleep(moment)
        workers, victims = run.named(*WORKER), [run.process]
        if what in ("driver", "in one process"):
            kill([run.process])
            _, alive = psutil.wait_procs(workers, timeout=20)
            assert not alive, "workers of a killed driver end by themselves"
        elif what == "process":
            victims = run.named(*WORKER)  # who labels and selects, too
            kill(victims)
        elif what == "ray":
            victims = run.named(*RAY)
            kill(victims)
        else:
            run.signal(signal.SIGINT)
            if twice:
                time.sleep(0.3)
                run.signal(signal.SIGINT)
        status = run.finish(200)
        ended = time.monotonic() - started
        log = run.log()
    assert "Traceback" not in log, log
    if what == "process":
        assert status == 0, "others go on, or start it again"
    if what == "interrupt":
        assert status == 130 or has_ended(log), log
    if what == "ray" and status != 0:  # it may have been over by then
        assert status == 1, log
        assert "Ray's processes on this machine ended" in log or "goes on from it" in log
    # Half of them go on in one process, which is faster and has to come to the same.
    quick = what in ("in one process", "ray", "interrupt")
    run_to_end(tmp_path, **({"scale__num_workers": 0} if quick else {}))
    how = f"{what} twice" if what == "interrupt" and twice else what
    print(
        f"\n{stage}: {how} ({len(victims)}) {moment:.2f} s after its start; ended with "
        f"{status} after {ended:.0f} s; in all {time.monotonic() - started:.0f} s"
    )
    assert_same(outcome(tmp_path), undisturbed)
