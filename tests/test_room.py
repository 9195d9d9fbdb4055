"""What a cluster has room for, as tables."""

import threading

import pytest
import yaml

from kdfm_ray.config import ScaleConfig
from kdfm_ray.jobs import room as module
from kdfm_ray.jobs import session as session_module
from kdfm_ray.jobs.label import default_actors
from kdfm_ray.jobs.room import Need, Node, Room, room_at_most, room_of_file, wait_for_room
from kdfm_ray.jobs.session import Session, _check_fits
from kdfm_ray.types import RunFailed, Stopped, UserError

UNEQUAL = Room((Node(5), Node(5), Node(1)))
GPUS = Room((Node(8, 1), Node(8, 4), Node(64)))


@pytest.mark.parametrize(
    ("room", "cpus", "gpus", "expected"),
    [
        (UNEQUAL, 1, 0, 11),
        (UNEQUAL, 2, 0, 4),
        (UNEQUAL, 5, 0, 2),
        (UNEQUAL, 6, 0, 0),
        (GPUS, 1, 1, 5),
        (GPUS, 4, 1, 3),  # CPUs of the first node and the last have no GPU left
        (Room(), 1, 0, 0),
    ],
)
def test_places(room, cpus, gpus, expected):
    assert room.places(cpus, gpus) == expected


@pytest.mark.parametrize(
    ("room", "processes", "gpus", "expected"),
    [
        (Room((Node(5), Node(5))), 3, 0, 2),  # an even part would be 3, and one finds no place
        (Room((Node(2),)), 1, 0, 2),
        (Room((Node(2),)), 3, 0, 1),  # at least one, though they do not fit
        (GPUS, 2, 1, 8),
        (GPUS, 5, 1, 2),
    ],
)
def test_the_largest_share_with_which_all_fit(room, processes, gpus, expected):
    assert room.share(processes, gpus) == expected


@pytest.mark.parametrize(
    ("file", "nodes"),
    [
        ("cluster.yaml", [Node(4, 1)] * 8),
        ("experiments/cluster/local.yaml", None),  # head and workers of one kind
    ],
)
def test_what_the_files_of_this_project_allow(file, nodes, request):
    config = yaml.safe_load((request.config.rootpath / file).read_text())
    found = room_of_file(config)
    assert found == (None if nodes is None else Room(tuple(nodes)))


def test_the_largest_kinds_count_first_up_to_the_limit_of_all():
    kinds = {
        "head": {"resources": {"CPU": 64}},
        "small": {"resources": {"CPU": 2}, "max_workers": 10},
        "large": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 2},
        "none": {"resources": {}},
    }
    config = {"max_workers": 3, "head_node_type": "head", "available_node_types": kinds}
    assert room_of_file(config) == Room((Node(8, 1), Node(8, 1), Node(2)))


@pytest.mark.parametrize("text", [None, "", "[1, 2]", "a: [", "available_node_types: 3"])
def test_no_file_or_another_one_says_nothing(text, tmp_path, monkeypatch):
    file = tmp_path / "bootstrap.yaml"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(module, "BOOTSTRAP", file)
    assert room_at_most() is None


def session_of(room, **scale):
    return Session(in_process=False, room=room, emit=print, scale=ScaleConfig(**scale))


@pytest.mark.parametrize(
    ("room", "scale", "cpus", "need"),
    [
        (Room((Node(5), Node(5))), {"num_workers": 3}, 2, Need(3, 2)),
        (Room((Node(5),)), {"num_workers": 2, "cpus_per_worker": 4}, 4, Need(2, 4)),
        (Room((Node(4),)), {"num_workers": 4, "min_workers": 2}, 1, Need(2, 1)),
        (GPUS, {"num_workers": 2}, 8, Need(2, 1, 1)),  # Ray Train's GPU workers ask for one CPU
        (Room((Node(3, 1),)), {"num_workers": 4}, 3, Need(4, 1, 1)),  # three are to come
        (GPUS.without_gpus(), {"num_workers": 2}, 32, Need(2, 32)),
    ],
)
def test_what_training_needs(room, scale, cpus, need):
    session = session_of(room, **scale)
    assert session.cpus_per_worker == cpus
    assert session.workers_need == need


@pytest.mark.parametrize(
    ("room", "scale", "told"),
    [
        (GPUS, {"num_workers": 6}, "6 training workers need as many GPUs, the cluster has 5"),
        (UNEQUAL, {"cpus_per_worker": 6}, "more than the 5 CPUs of the largest node"),
        (UNEQUAL, {"num_workers": 3, "cpus_per_worker": 4}, "with room for 2 such workers"),
        (UNEQUAL, {"use_gpu": "yes"}, "there is no GPU here"),
        (GPUS, {"num_workers": 9, "min_workers": 6}, "6 training workers need as many GPUs"),
    ],
)
def test_what_can_never_fit_is_refused(room, scale, told):
    with pytest.raises(UserError) as error:
        _check_fits(ScaleConfig(**scale), room)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("room", "workers", "share", "actors"),
    [(GPUS, 2, 1.0, 2), (GPUS, 2, 0.5, 4), (GPUS, 2, 0.3, 6), (UNEQUAL, 2, 0.5, 2)],
)
def test_labeling_actors_that_share_gpus(room, workers, share, actors):
    assert default_actors(session_of(room, num_workers=workers), share) == actors


class FakeCluster:
    """Nodes that come at the third look, and what an autoscaler was asked for."""

    def __init__(self, monkeypatch, *rooms):
        self.rooms, self.asked, self.told = list(rooms), [], []
        monkeypatch.setattr(module, "room_now", self.now)
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
        monkeypatch.setattr("ray.autoscaler.sdk.request_resources", self.ask)

    def now(self):
        return self.rooms.pop(0) if len(self.rooms) > 1 else self.rooms[0]

    def ask(self, bundles):
        self.asked.append(bundles)

    def emit(self, event):
        self.told.append(event["note"])


def test_waiting_asks_for_nodes_says_so_and_takes_the_request_back(monkeypatch):
    cluster = FakeCluster(monkeypatch, Room(), Room((Node(2, 1),)), Room((Node(2, 1), Node(2, 1))))
    wait_for_room(Need(2, 1, 1), cluster.emit, minutes=1)
    assert cluster.asked == [[{"CPU": 1, "GPU": 1}] * 2, []]
    assert cluster.told == [
        "waiting up to 1 minutes for nodes: 2 processes with 1 GPU and 1 CPU each needed, the "
        "cluster has no node that computes",
        "going on after 0 s: 4 CPUs and 2 GPUs on 2 nodes",
    ]


def test_nothing_is_asked_for_where_there_is_room(monkeypatch):
    cluster = FakeCluster(monkeypatch, Room((Node(2),)))
    wait_for_room(Need(2, 1), cluster.emit, minutes=1)
    assert cluster.asked == cluster.told == []


def test_waiting_has_an_end(monkeypatch):
    cluster = FakeCluster(monkeypatch, Room((Node(2),)))
    with pytest.raises(RunFailed, match=r"no more nodes came within 0.001 minutes"):
        wait_for_room(Need(3, 1), cluster.emit, minutes=0.001)
    assert cluster.asked[-1] == []


def test_waiting_can_be_stopped(monkeypatch):
    cluster = FakeCluster(monkeypatch, Room((Node(2),)))
    with pytest.raises(Stopped):
        wait_for_room(Need(3, 1), cluster.emit, minutes=1, stop=lambda: True)
    assert cluster.asked[-1] == []


def growing(cluster, **fields):
    """A session whose nodes may come and go."""
    return Session(
        in_process=False,
        room=Room((Node(2),)),
        emit=cluster.emit,
        scale=ScaleConfig(num_workers=1, cpus_per_worker=2),
        may_grow=True,
        **fields,
    )


def test_work_whose_nodes_go_waits_in_words_for_others(monkeypatch):
    full, empty = Room((Node(2),)), Room()
    cluster = FakeCluster(monkeypatch, full, full, empty, empty, full)
    monkeypatch.setattr(session_module, "LOOK_SECONDS", 0.01)
    back = threading.Event()
    monkeypatch.setattr(cluster, "emit", lambda event: note(event["note"]))
    told = []

    def note(text):
        told.append(text)
        if text.startswith("going on"):
            back.set()

    def work():
        assert back.wait(10)
        return 7

    session = growing(cluster)
    assert session.watching(session.actor_need, work) == 7
    assert "waiting up to 30 minutes for nodes: 1 process with 2 CPUs needed" in told[0]
    assert told[1].startswith("going on after")
    assert len(told) == 2


def test_work_whose_nodes_stay_away_ends(monkeypatch):
    cluster = FakeCluster(monkeypatch, Room((Node(2),)), Room())
    monkeypatch.setattr(session_module, "LOOK_SECONDS", 0.01)
    session, over = growing(cluster, wait_minutes=0.001), threading.Event()
    with pytest.raises(RunFailed, match=r"within 0.001 minutes"):
        session.watching(session.actor_need, over.wait)
    over.set()


def test_what_the_work_raises_is_raised(monkeypatch):
    def fail():
        raise UserError("of the work")

    cluster = FakeCluster(monkeypatch, Room((Node(2),)))
    for session in (growing(cluster), session_of(Room((Node(2),)))):
        with pytest.raises(UserError, match="of the work"):
            session.watching(session.actor_need, fail)
