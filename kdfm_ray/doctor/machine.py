"""This machine: interpreter, libraries, processors, memory, disks, caches."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from kdfm_ray.doctor.findings import Finding, error, ok, warning

GIB = 2**30
SHM, CGROUP = Path("/dev/shm"), Path("/sys/fs/cgroup")
# Limit, usage, statistics and their line of caches that are given up at need: of versions 2 and 1.
CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
OBJECT_STORE_SHARE = 0.3  # of the memory, which Ray would like to have in /dev/shm
FEW_GIB, TOO_FEW_GIB = 10.0, 1.0  # of free disk
OPEN_FILES = 4096  # a run with several workers opens some hundred each


def python() -> Finding:
    """The interpreter; an older one than 3.11 does not come as far as this."""
    return ok("Python", f"{platform.python_version()} ({sys.executable})")


def torch() -> list[Finding]:
    """Its version, and the GPUs that it can use."""
    import torch

    text = f"{torch.__version__}, {torch.get_num_threads()} threads"
    found = [ok("torch", text)]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        gpus = ", ".join(f"{each.name} ({each.total_memory / GIB:.0f} GiB)" for each in names)
        return [*found, ok("GPU", f"{gpus}, CUDA {torch.version.cuda}")]
    if shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        mend = "install an NVIDIA driver that is new enough, or a torch built for the one you have"
        if torch.version.cuda is None:
            mend = "this torch is built for CPUs: install one that is built for CUDA"
        return [*found, error("GPU", "there is one, and torch cannot use it", mend)]
    return [*found, ok("GPU", f"none; networks train on {os.cpu_count()} CPU cores")]


def faiss() -> Finding:
    """Whether k-means can run on the GPU."""
    import faiss
    import torch

    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    if torch.cuda.is_available() and not gpus:
        return warning(
            "FAISS",
            f"{faiss.__version__} sees no GPU: k-means runs on the CPU",
            "install faiss-gpu in place of faiss-cpu, for the CUDA of torch",
        )
    return ok("FAISS", f"{faiss.__version__}, {gpus} GPUs" if gpus else f"{faiss.__version__}, CPU")


def libraries() -> Finding:
    """Others without which no run begins."""
    names = ("ray", "torchvision", "timm", "scikit-learn", "numpy", "pyarrow", "pillow")
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return error("libraries", f"missing: {', '.join(missing)}", "pip install kdfm_ray")
    return ok("libraries", ", ".join(found))


def memory() -> Finding:
    """What is free now, and what a container allows."""
    seen = psutil.virtual_memory()
    total, free = seen.total, seen.available
    limit, used = _of_container()
    if limit is not None and limit < total:
        total, free = limit, min(free, limit - used)
    text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < 2 * GIB:
        return warning("memory", text, "end other programs, or use fewer workers: each takes 1 GiB")
    return ok("memory", text)


def shared_memory() -> Finding:
    """Ray's object store lies in ``/dev/shm``; containers often have 64 MB of it."""
    if not SHM.is_dir():
        return ok("shared memory", f"no {SHM} here; Ray uses files")
    size = shutil.disk_usage(SHM).total
    total = psutil.virtual_memory().total
    wanted = OBJECT_STORE_SHARE * min(total, _of_container()[0] or total)
    text = f"{size / GIB:.2f} GiB in {SHM}"
    if size < 0.9 * wanted:
        return warning(
            "shared memory",
            f"{text}; Ray would use {wanted / GIB:.1f} GiB, and takes slow files instead",
            f"in a container: docker run --shm-size={wanted / GIB:.1f}g (Kubernetes: an emptyDir "
            f"with medium Memory at {SHM})",
        )
    return ok("shared memory", text)


def disks(store: str) -> list[Finding]:
    """Room for temporary files, and in the store where that is a folder."""
    places = {"disk (temporary)": Path(tempfile.gettempdir())}
    if "://" not in store:
        places["disk (store)"] = Path(store).expanduser().absolute()
    return [_disk(name, path) for name, path in places.items()]


def _disk(name: str, path: Path) -> Finding:
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free / GIB
    text = f"{free:.1f} GiB free at {path}"
    if free < TOO_FEW_GIB:
        return error(name, text, "make room, or choose another place (TMPDIR, --store)")
    if free < FEW_GIB:
        return warning(name, text, "a large run may need more: images, states and labels go there")
    return ok(name, text)


def open_files() -> Finding:
    """The limit of this process, which its children inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        return warning("open files", f"at most {soft}", f"ulimit -n {min(65_536, hard)}")
    return ok("open files", f"at most {soft}")


def weights() -> Finding:
    """Where weights that were fetched once are kept."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    models = sorted(hub.glob("models--timm--*")) if hub.is_dir() else []
    writable = _writable(hub)
    if not models and not writable:
        return warning(
            "weights cache",
            f"{hub} is empty and cannot be written",
            "set HF_HOME to a folder that can, or give a file: --model.pretrained FILE",
        )
    text = f"{len(models)} of timm's models" if models else "empty; fetched when first asked for"
    return ok("weights cache", f"{text} ({hub})")


def _writable(path: Path) -> bool:
    while not path.exists():
        path = path.parent
    return os.access(path, os.W_OK)


def _of_container() -> tuple[int | None, int]:
    """Memory that a container may take (``None``: any) and has taken but for caches, in bytes."""
    for limit, usage, stat, cache in CGROUPS:
        if (most := _number(CGROUP / limit)) is not None:
            lines = (CGROUP / stat).read_text().splitlines() if (CGROUP / stat).is_file() else []
            caches = [int(line.split()[1]) for line in lines if line.split()[0] == cache]
            return most, max(0, (_number(CGROUP / usage) or 0) - sum(caches))
    return None, 0


def _number(file: Path) -> int | None:
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text.isdigit() else None
