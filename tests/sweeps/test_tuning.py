"""What Tune tells of trials, in the sweep's words."""

from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Listener:
    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *facts: self.told.append((name, *facts))


class Search:
    def __init__(self):
        self.completed = []

    def on_trial_complete(self, trial_id, error=False):
        self.completed.append(trial_id)


def trial(job, status="RUNNING"):
    return SimpleNamespace(
        config={"job": {"id": job}}, trial_id=f"tune-{job}", status=status, error_file=None
    )


@pytest.fixture
def relay():
    from kdfm_ray.sweeps.tuning import _Relay

    return _Relay(Listener(), Search())


def test_a_trial_from_its_start_to_its_end(relay):
    a = trial("a")
    relay.on_trial_start(0, [a], a)
    result = {"step": 5, "val_accuracy": 0.5, "seconds": 1.0}
    relay.on_trial_result(0, [a], a, result)
    ended = {"ended": {"status": "finished", "row": {}, "seconds": 2.0}}
    relay.on_trial_result(0, [a], a, ended)
    relay.on_trial_result(0, [a], a, ended)  # Tune repeats the last one
    relay.on_trial_error(0, [a], a)  # its process dies after that
    assert relay._listener.told == [
        ("started", "a"),
        ("reported", "a", 5, 0.5, 1.0),
        ("ended", "a", "finished", {"row": {}, "seconds": 2.0}),
    ]
    assert relay.over == {"a"}


def test_one_whose_process_dies_too_often_has_failed(relay):
    a = trial("a")
    relay.on_trial_start(0, [a], a)
    relay.on_trial_recover(0, [a], a)
    relay.on_trial_start(0, [a], a)
    relay.on_trial_error(0, [a], a)
    names = [what[0] for what in relay._listener.told]
    assert names == ["started", "died", "started", "ended"]
    assert relay.over == {"a"}


def test_one_that_died_before_it_began_is_left_and_holds_no_slot(relay):
    a, b = trial("a"), trial("b", status="ERROR")
    relay.on_trial_start(0, [a], a)
    relay.on_trial_error(0, [a, b], b)
    for step in range(3):
        relay.on_step_end(step, [a, b])
    assert relay._search.completed == ["tune-b"]
    assert relay._listener.told == [("started", "a")]
    assert relay.over == set()
