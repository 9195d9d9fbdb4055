"""One examination after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kdfm_ray.doctor import cluster, machine
from kdfm_ray.doctor.findings import Finding, error


def examine(store: str) -> Iterator[Finding]:
    """Look at everything that a run needs; each finding comes when it is known.

    Args:
        store: folder or URI of the artifacts.

    Nothing is changed but a small file that is written to the store and removed. Where
    ``RAY_ADDRESS`` names a cluster it is joined for a moment; no Ray is started.
    """
    looks: list[tuple[str, Callable[[], Finding | list[Finding]]]] = [
        ("Python", machine.python),
        ("libraries", machine.libraries),
        ("torch", machine.torch),
        ("FAISS", machine.faiss),
        ("memory", machine.memory),
        ("shared memory", machine.shared_memory),
        ("disk", lambda: machine.disks(store)),
        ("open files", machine.open_files),
        ("weights cache", machine.weights),
        ("Ray", cluster.ray_version),
        ("token", cluster.token),
        ("ports", cluster.ports),
        ("upload", cluster.upload),
        ("cluster", lambda: cluster.cluster_and_store(store)),
    ]
    for name, look in looks:
        try:
            found = look()
        except Exception as problem:  # a broken library says so in its own way
            text = f"{type(problem).__name__}: {problem}"
            found = error(name, text, "install it anew, or report this as a mistake of kdfm doctor")
        yield from found if isinstance(found, list) else [found]
