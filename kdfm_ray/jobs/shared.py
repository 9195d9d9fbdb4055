"""Whether all nodes of a cluster see one store."""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

from kdfm_ray.jobs.session import Session
from kdfm_ray.store import Store
from kdfm_ray.types import UserError

TIMEOUT_SECONDS = 60.0  # for all nodes together to answer


def check_shared(session: Session, store: Store) -> None:
    """Have every node look at a file that this process writes into the store.

    Raises:
        UserError: the store is a folder that some nodes do not share, and names them; or one
            behind a URI that does not work from the driver or from where a task runs.
    """
    store.check()
    if session.in_process:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    if store.remote:
        session.call(_check_from_here, store.root)
        return
    name = f".shared-{uuid.uuid4().hex}"
    mark = Path(store.root, name)
    mark.write_text(name)
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(_sees)
        answers = {
            look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(str(mark)): f"{address} ({node[:8]})"
            for node, address in nodes.items()
        }
        done, late = ray.wait(list(answers), num_returns=len(answers), timeout=TIMEOUT_SECONDS)
        blind = [answers[answer] for answer in done if not _answer(answer)]
    finally:
        mark.unlink(missing_ok=True)
    refuse_unshared(store.root, blind, [answers[answer] for answer in late], len(nodes))


def refuse_unshared(root: str, blind: list[str], late: list[str], nodes: int) -> None:
    """Raise where nodes do not see the folder, or did not say in time."""
    if not blind and not late:
        return
    problems = []
    if blind:
        problems.append(f"{len(blind)} of {nodes} nodes do not see it: {', '.join(blind)}")
    if late:
        problems.append(f"no answer within {TIMEOUT_SECONDS:.0f} s from {', '.join(late)}")
    raise UserError(
        f"the store {root} is a folder that not all nodes of the cluster share "
        f"({'; '.join(problems)}): give a folder on a shared file system, or a URI such as "
        "s3://bucket/prefix, with --store or KDFM_STORE"
    )


def _check_from_here(root: str) -> None:
    try:
        Store(root).check()
    except UserError as error:
        raise UserError(f"on the node {socket.gethostname()}: {error}") from error


def _sees(mark: str) -> bool:
    path = Path(mark)
    return path.is_file() and path.read_text() == path.name


def _answer(reference: object) -> bool:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return bool(ray.get(reference))
    except RayTaskError:
        return False  # it may not read there, for example
    except RayError:
        return True  # a node that went away meanwhile needs no store
