"""The state of a training between two updates: all that the rest of it depends on.

Every random choice is a function of (seed, step, slot), so the state is what the updates have made
(weights, their average, optimizer) and what was measured (metrics). It is read without running
code: tensors as safetensors, the rest as JSON.

Each worker's batch-norm statistics are its own. A state holds those of all workers: as many workers
go on exactly as they were, another number of them from the mean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdfm_ray.models.backbone import Network
from kdfm_ray.training.runtime import Runtime

TENSORS, FACTS = "state.safetensors", "state.json"


@dataclass(frozen=True)
class State:
    """A copy of a training, on the CPU.

    Attributes:
        step: finished updates.
        tensors: ``network.*``, ``ema.*``, ``optimizer.NUMBER.NAME``, ``alignment.*`` where pseudo
            labels are aligned, ``thresholds.*`` where these adapt, and ``buffers`` float32
            ``[workers, n]``, the floating-point buffers of both networks in their order.
        facts: JSON of whoever else has something to keep.
    """

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def is_finite(self) -> bool:
        """Whether no number in it is NaN or infinite."""
        return all(bool(t.isfinite().all()) for t in self.tensors.values() if t.is_floating_point())

    def write(self, folder: Path) -> None:
        """Write two files into ``folder``."""
        save_file(self.tensors, folder / TENSORS)
        facts = json.dumps({"step": self.step} | self.facts)
        (folder / FACTS).write_text(facts)

    @classmethod
    def read(cls, folder: Path) -> State:
        """Read what ``write`` wrote; raises ``ValueError`` where it is something else."""
        try:
            facts = json.loads((folder / FACTS).read_text())
            return cls(facts.pop("step"), load_file(folder / TENSORS), facts)
        except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
            raise ValueError(f"{folder} holds no state of a training: {error}") from error


def copy_state(
    step: int,
    network: Network,
    ema: Network,
    optimizer: torch.optim.Optimizer,
    labeling: nn.Module,
    facts: dict[str, Any],
    runtime: Runtime,
) -> State | None:
    """Copy the training to the CPU, on rank 0; all workers call it together."""
    buffers = runtime.gather(_flat_buffers(network, ema))
    if runtime.rank != 0:
        return None
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in ema.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{number}.{name}": value
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
    tensors |= labeling.state_dict()
    tensors["buffers"] = buffers
    return State(step, {name: _copy(value) for name, value in tensors.items()}, facts)


def restore_state(
    state: State,
    network: Network,
    ema: Network,
    optimizer: torch.optim.Optimizer,
    labeling: nn.Module,
    runtime: Runtime,
) -> None:
    """Put a state back, in place, on every worker.

    Raises:
        ValueError: it is not of this network and optimizer.
    """
    try:
        network.load_state_dict(_below(state.tensors, "network."))
        ema.load_state_dict(_below(state.tensors, "ema."))
        labeling.load_state_dict(_of(state.tensors, labeling))
        _restore_optimizer(optimizer, _below(state.tensors, "optimizer."))
        rows = state.tensors["buffers"]
        mine = rows[runtime.rank] if len(rows) == runtime.world_size else rows.mean(dim=0)
        _fill_buffers(mine, network, ema)
    except (RuntimeError, KeyError, IndexError) as error:
        raise ValueError(f"the saved state is not of this network: {error}") from error


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        number, _, name = path.partition(".")
        parameter = parameters[int(number)]
        # In the layout of the weight it belongs to: else every later update would convert it.
        placed = torch.empty_like(parameter).copy_(value) if value.ndim else value
        entries.setdefault(int(number), {})[name] = placed
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _of(tensors: dict[str, Tensor], parent: nn.Module) -> dict[str, Tensor]:
    """Those whose names begin with that of one of its children."""
    children = tuple(f"{name}." for name, _ in parent.named_children())
    return {name: value for name, value in tensors.items() if name.startswith(children)}


def _floating(*networks: nn.Module) -> list[Tensor]:
    return [b for network in networks for b in network.buffers() if b.is_floating_point()]


def _flat_buffers(*networks: nn.Module) -> Tensor:
    parts = [buffer.detach().float().flatten() for buffer in _floating(*networks)]
    return torch.cat(parts) if parts else torch.empty(0)


@torch.no_grad()
def _fill_buffers(flat: Tensor, *networks: nn.Module) -> None:
    buffers = _floating(*networks)
    parts = flat.split([buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view_as(buffer))


def _copy(value: Tensor) -> Tensor:
    """A copy on the CPU that shares memory with nothing, row by row as safetensors takes it."""
    copy = torch.empty(value.shape, dtype=value.dtype)
    return copy.copy_(value.detach())
