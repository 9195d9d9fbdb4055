"""Whether all nodes of a cluster see one store."""

from __future__ import annotations

import uuid
from pathlib import Path

from kdfm_ray.jobs.session import Session
from kdfm_ray.store import Store
from kdfm_ray.types import UserError

TIMEOUT_SECONDS = 60.0  # for all nodes together to answer
UNSEEN = "what was just written there is not seen"


def check_shared(session: Session, store: Store) -> None:
    """Have every node look at a file that this process writes into the store.

    Behind a URI, every node also writes, reads, lists and removes a file of its own.

    Raises:
        UserError: the store is a folder that some nodes do not share, or a URI that does not work
            from here or from some nodes; names them.
    """
    store.check()
    if session.in_process:
        return
    import ray

    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2 and not store.remote:
        return
    name = f".shared-{uuid.uuid4().hex}"
    with store.mark(name):
        found, late = _ask_all(store.root, name, nodes)
    if store.remote:
        refuse_unusable(store.root, found, late, len(nodes))
    else:
        blind = [node if why == UNSEEN else f"{node}: {why}" for node, why in found.items()]
        refuse_unshared(store.root, blind, late, len(nodes))


def _ask_all(root: str, name: str, nodes: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """What each node has to say of a store that it cannot use; and nodes that said nothing."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(trouble_here)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            root, name
        ): f"{address} ({node[:8]})"
        for node, address in nodes.items()
    }
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=TIMEOUT_SECONDS)
    troubles = {asked[answer]: _answer(answer) for answer in done}
    return (
        {node: why for node, why in troubles.items() if why},
        [asked[answer] for answer in late],
    )


def refuse_unusable(root: str, troubles: dict[str, str], late: list[str], nodes: int) -> None:
    """Raise where a URI does not work from some nodes (address -> why), or they did not say."""
    if not troubles and not late:
        return
    whys = [f"{node}: {why}" for node, why in troubles.items()]
    if late:
        whys.append(f"no answer within {TIMEOUT_SECONDS:.0f} s from {', '.join(late)}")
    raise UserError(
        f"the store {root} does not work from {len(troubles) + len(late)} of {nodes} nodes of the "
        f"cluster: {'; '.join(whys)}. Each node needs the network, credentials and settings for it"
    )


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


def trouble_here(root: str, name: str) -> str:
    """Why this node cannot use the store where the mark ``name`` was written; ``""`` where it can.

    A folder is only looked at: where it is not shared it is not made either.
    """
    try:
        if "://" not in root and not Path(root).is_dir():
            return UNSEEN
        store = Store(root)
        store.check()
        return "" if store.sees(name) else UNSEEN
    except UserError as error:
        return str(error)
    except (OSError, ImportError) as error:
        return f"{type(error).__name__}: {error}"


def _answer(reference: object) -> str:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return str(ray.get(reference))
    except RayTaskError as error:
        return f"{type(error.cause).__name__}: {error.cause}"
    except RayError:
        return ""  # a node that went away meanwhile needs no store
