"""What a cluster has room for, and waiting for its nodes.

A cluster may begin with a head that computes nothing: nodes that do come when work waits for them.
So its nodes of now say little; where it is known what an autoscaler may start, that counts.

As the driver imports this, it imports Ray only where it asks it.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdfm_ray.types import Emit, RunFailed, Stopped

LOOK_SECONDS = 1.0  # between looks at the cluster
ASK_SECONDS = 30.0  # between requests: another job's replaces ours, and ours replaces it
MOST_NODES = 1024  # counted where a group of nodes has no limit
BOOTSTRAP = Path(
    "~/ray_bootstrap_config.yaml"
)  # where `ray up` leaves a cluster's file on its head


@dataclass(frozen=True)
class Node:
    """What one node has."""

    cpus: int
    gpus: int = 0


@dataclass(frozen=True)
class Room:
    """The nodes of a cluster: those that are there, or all that it may have."""

    nodes: tuple[Node, ...] = ()

    @property
    def cpus(self) -> int:
        """Of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        """Of all nodes."""
        return sum(node.gpus for node in self.nodes)

    @property
    def node_cpus(self) -> int:
        """Of the node with the most."""
        return max((node.cpus for node in self.nodes), default=0)

    def places(self, cpus: int, gpus: int = 0) -> int:
        """How many processes that need so much, each on one node, fit side by side."""
        return sum(
            min(node.cpus // cpus, node.gpus // gpus if gpus else node.cpus) for node in self.nodes
        )

    def share(self, processes: int, gpus: int = 0) -> int:
        """CPUs that each of so many processes can have, at least 1, where all fit side by side.

        That is less than an even part where nodes are unequal: three processes on two nodes with
        five CPUs each have two.
        """
        shares = range(self.node_cpus, 1, -1)
        return next((each for each in shares if self.places(each, gpus) >= processes), 1)

    def without_gpus(self) -> Room:
        """The same nodes where GPUs are not to be used."""
        return Room(tuple(Node(node.cpus) for node in self.nodes))

    def __str__(self) -> str:
        if not self.nodes:
            return "no node that computes"
        has = [_count(self.cpus, "CPU")] + ([_count(self.gpus, "GPU")] if self.gpus else [])
        return f"{' and '.join(has)} on {_count(len(self.nodes), 'node')}"


def room_now(*, head_alone: bool = False) -> Room:
    """The nodes of the cluster that are there, but for those that compute nothing."""
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if head_alone:
        found = [each for each in found if "node:__internal_head__" in each]
    nodes = (Node(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in found)
    return Room(tuple(node for node in nodes if node.cpus))


def room_at_most() -> Room | None:
    """All nodes that the cluster's autoscaler may start; ``None`` where that cannot be known here.

    It can on the head of a cluster that ``ray up`` has started.
    """
    file = BOOTSTRAP.expanduser()
    if not file.is_file():
        return None
    import yaml

    try:
        workers = room_of_file(yaml.safe_load(file.read_text()))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return None  # not ours: nodes that are there have to do
    return workers and Room(room_now(head_alone=True).nodes + workers.nodes)


def room_of_file(config: Mapping[str, Any]) -> Room | None:
    """All workers that a cluster's file allows, the largest kinds first; ``None`` for no kind."""
    most, head = int(config.get("max_workers") or 0), config.get("head_node_type")
    nodes: list[Node] = []
    for name, kind in (config.get("available_node_types") or {}).items():
        resources = kind.get("resources") or {}
        node = Node(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))
        if name != head and node.cpus:
            limit = int(kind.get("max_workers", most))
            nodes += [node] * min(limit, most, MOST_NODES)
    nodes.sort(key=lambda node: (node.gpus, node.cpus), reverse=True)
    return Room(tuple(nodes[:most])) if nodes else None


@dataclass(frozen=True)
class Need:
    """Processes that have to run side by side, and what each asks for."""

    processes: int
    cpus: int
    gpus: int = 0

    def fits(self, room: Room) -> bool:
        """Whether those nodes have room for all of them."""
        return room.places(self.cpus, self.gpus) >= self.processes

    def bundles(self) -> list[dict[str, float]]:
        """As Ray is asked for it."""
        each: dict[str, float] = {"CPU": self.cpus}
        if self.gpus:
            each["GPU"] = self.gpus
        return [each] * self.processes

    def __str__(self) -> str:
        each = _count(self.cpus, "CPU")
        if self.gpus:
            each = f"{_count(self.gpus, 'GPU')} and {each}"
        if self.processes == 1:
            return f"1 process with {each}"
        return f"{self.processes} processes with {each} each"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def wait_for_room(
    need: Need, emit: Emit, *, minutes: float, stop: Callable[[], bool] = lambda: False
) -> None:
    """Ask the cluster's autoscaler, if it has one, for what is needed, and wait until it is there.

    Args:
        need: what has to fit.
        emit: is told what is waited for.
        minutes: at most.
        stop: asked about once a second; true: raise ``Stopped``.

    Raises:
        RunFailed: the nodes have not come by then.
        Stopped: it was asked to.
    """
    now = room_now()
    if need.fits(now):
        return
    from ray.autoscaler.sdk import request_resources

    text = f"waiting up to {minutes:g} minutes for nodes: {need} needed, the cluster has {now}"
    emit({"stage": "", "note": text})
    started = time.monotonic()
    try:
        for look in itertools.count():
            if look % round(ASK_SECONDS / LOOK_SECONDS) == 0:
                with contextlib.suppress(Exception):  # a cluster without an autoscaler
                    request_resources(bundles=need.bundles())
            time.sleep(LOOK_SECONDS)
            now = room_now()
            if need.fits(now):
                seconds = time.monotonic() - started
                emit({"stage": "", "note": f"going on after {seconds:.0f} s: {now}"})
                return
            if stop():
                raise Stopped("stopped while it waited for nodes; the same command goes on")
            if time.monotonic() - started > 60 * minutes:
                raise RunFailed(
                    f"no more nodes came within {minutes:g} minutes (faults.wait_minutes): {need} "
                    f"needed, the cluster has {now}. See what `ray status` says on the cluster, or "
                    "ask for less: scale.num_workers, scale.cpus_per_worker, or scale.use_gpu no; "
                    "the same command goes on"
                )
    finally:
        with contextlib.suppress(Exception):  # what runs now asks by itself
            request_resources(bundles=[])
