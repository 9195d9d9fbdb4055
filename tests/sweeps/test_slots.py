"""How a cluster is divided among trials, as a table."""

import pytest

from kdfm_ray.config import ScaleConfig
from kdfm_ray.jobs.room import Node, Room
from kdfm_ray.sweeps.slots import Slots, find_slots
from kdfm_ray.types import UserError

ONE_MACHINE = Room((Node(2),))


@pytest.mark.parametrize(
    ("scale", "cluster", "options", "expected"),
    [
        # Several trials on a CPU each; a single one has all of them.
        ({}, ONE_MACHINE, {"jobs": 8}, Slots(2, 1, 1, 0, False)),
        ({}, ONE_MACHINE, {"jobs": 1}, Slots(1, 1, 2, 0, False)),
        ({}, ONE_MACHINE, {"jobs": 8, "max_concurrent": 1}, Slots(1, 1, 2, 0, False)),
        ({"num_workers": 0}, ONE_MACHINE, {"jobs": 8}, Slots(2, 1, 1, 0, False)),
        ({"cpus_per_worker": 2}, ONE_MACHINE, {"jobs": 8}, Slots(1, 1, 2, 0, False)),
        # Workers of Ray Train, which fit into two CPUs exactly.
        ({"num_workers": 2}, ONE_MACHINE, {"jobs": 8}, Slots(1, 2, 1, 0, True)),
        (
            {"num_workers": 2},
            Room((Node(8), Node(8))),
            {"jobs": 3},
            Slots(3, 2, 2, 0, True),
        ),
        # A GPU for each worker; CPUs are shared out.
        ({}, Room((Node(16, 4),)), {"jobs": 8}, Slots(4, 1, 4, 1, False)),
        (
            {},
            Room((Node(16, 4),)),
            {"jobs": 40, "gpus_per_trial": 0.25},
            Slots(16, 1, 1, 0.25, False),
        ),
        (
            {"num_workers": 2},
            Room((Node(16, 5),)),
            {"jobs": 8},
            Slots(2, 2, 4, 1, True),
        ),
    ],
)
def test_slots(scale, cluster, options, expected):
    assert find_slots(ScaleConfig(**scale), room=cluster, **options) == expected


@pytest.mark.parametrize(
    ("scale", "cluster", "told"),
    [
        ({"num_workers": 3}, ONE_MACHINE, "3 workers x 1 CPUs = 3, the cluster has 2 CPUs"),
        ({"cpus_per_worker": 4}, ONE_MACHINE, "a trial needs 1 workers x 4 CPUs = 4"),
        (
            {"cpus_per_worker": 8},
            Room((Node(4),) * 4),
            "4 on its largest node",
        ),
        (
            {"num_workers": 4},
            Room((Node(32, 1),) * 2),
            "4 workers x 1 GPU and as many CPUs, the cluster has 2 GPUs",
        ),
    ],
)
def test_what_cannot_fit_is_refused_with_what_it_needs_and_what_there_is(scale, cluster, told):
    with pytest.raises(UserError) as error:
        find_slots(ScaleConfig(**scale), jobs=2, room=cluster)
    assert told in str(error.value)


def test_a_trial_of_several_workers_takes_no_cpu_beside_theirs():
    request = find_slots(ScaleConfig(num_workers=2), jobs=1, room=ONE_MACHINE).request()
    assert request.get("CPU", 0) == 0
    assert all(amount > 0 for amount in request.values())  # Tune refuses an empty request
