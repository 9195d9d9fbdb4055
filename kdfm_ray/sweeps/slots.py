"""How many trials of a sweep run side by side, and on what: computed before any is started."""

from __future__ import annotations

from dataclasses import dataclass

from kdfm_ray.config import ScaleConfig
from kdfm_ray.jobs.room import Room
from kdfm_ray.types import UserError


@dataclass(frozen=True)
class Slots:
    """Room for trials.

    Attributes:
        concurrent: trials at once.
        workers: training workers of each.
        cpus: of each worker, which are its torch threads.
        gpus: of each worker; 0 where none are used.
        nested: workers are processes of Ray Train; else the trial trains in its own process.
    """

    concurrent: int
    workers: int
    cpus: int
    gpus: float
    nested: bool

    def request(self) -> dict[str, float]:
        """What Tune reserves for the process of a trial.

        That of a nested trial waits for its workers and takes next to nothing. Some memory has to
        stand for that: Tune takes no request of zero CPUs, and with the smallest share of one, two
        workers of one CPU would not fit into two CPUs any more.
        """
        if self.nested:
            return {"memory": 2.0**20}
        if self.gpus:
            return {"CPU": 1, "GPU": self.gpus}
        return {"CPU": self.cpus}

    def __str__(self) -> str:
        trials = "1 trial" if self.concurrent == 1 else f"{self.concurrent} trials"
        each = f"{self.gpus:g} GPU" if self.gpus else f"{self.cpus} CPU"
        if self.workers > 1:
            each = f"{self.workers} workers x {each}"
        return f"{trials} at once, {each} each"


def find_slots(
    scale: ScaleConfig,
    *,
    jobs: int,
    room: Room,
    max_concurrent: int | None = None,
    gpus_per_trial: float = 1.0,
) -> Slots:
    """Divide a cluster among trials.

    Args:
        scale: workers of a trial, and their CPUs where they are set.
        jobs: how many trials there are to run.
        room: nodes of the cluster; their GPUs are used.
        max_concurrent: at most so many trials at once.
        gpus_per_trial: of a trial of one worker; several may share a GPU.

    Raises:
        UserError: not even one trial fits; says what it needs and what the cluster has.
    """
    workers, nested = max(1, scale.num_workers), scale.num_workers > 1
    wanted = max(1, min(jobs, max_concurrent or jobs))
    if room.gpus:
        each = 1.0 if nested else gpus_per_trial
        # A trial lies on one GPU whole, and each of its processes asks for a CPU, too.
        shares = int(1 / each + 1e-9)
        places = sum(min(node.gpus * shares, node.cpus) for node in room.nodes)
        concurrent = min(wanted, places // workers)
        if concurrent < 1:
            raise UserError(
                f"a trial needs {workers} workers x {each:g} GPU and as many CPUs, the cluster has "
                f"{room.gpus} GPUs and {room.cpus} CPUs: lower scale.num_workers, or use "
                "scale.use_gpu no"
            )
        threads = scale.cpus_per_worker or max(1, room.cpus // (concurrent * workers))
        return Slots(concurrent, workers, threads, each, nested)
    threads = scale.cpus_per_worker or 1
    if room.places(threads) < workers:
        raise UserError(
            f"a trial needs {workers} workers x {threads} CPUs = {workers * threads}, the cluster "
            f"has {room.cpus} CPUs, {room.node_cpus} on its largest node: lower scale.num_workers "
            "or scale.cpus_per_worker"
        )
    concurrent = min(wanted, room.places(threads) // workers)
    if scale.cpus_per_worker is None:  # the CPUs that are left over make the trials faster
        threads = room.share(concurrent * workers)
    return Slots(concurrent, workers, threads, 0, nested)
