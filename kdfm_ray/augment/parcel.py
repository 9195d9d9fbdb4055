"""Small arrays that go to a device together: sixteen copies of a view's numbers are one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WORD = 8  # bytes; every array begins at a multiple, so that its type can be read there


class Parcel:
    """Takes arrays on the host, and has them all on a device by one copy.

    To a GPU it goes from pinned memory, and nobody waits for it. A CPU gets a copy of each array,
    as sliced parameters may be read-only.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._arrays: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> int:
        """Its place in what ``send`` returns."""
        self._arrays.append(values)
        return len(self._arrays) - 1

    def send(self, device: torch.device) -> list[Tensor]:
        """All arrays, on the device."""
        if device.type == "cpu":
            return [torch.tensor(values) for values in self._arrays]
        return unpack(pack(self._arrays, pin=device.type == "cuda"), self._arrays, device)


def pack(arrays: list[np.ndarray], *, pin: bool) -> Tensor:
    """The bytes of all arrays, uint8 ``[b]``, in pinned memory if wished."""
    starts = _starts(arrays)
    packed = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=pin)
    there = packed.numpy()
    for start, values in zip(starts, arrays, strict=False):
        there[start : start + values.nbytes] = (
            np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        )
    return packed


def unpack(packed: Tensor, arrays: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """The arrays again, on the device; of ``arrays`` shapes and types alone are read."""
    sent = packed.to(device, non_blocking=True)
    return [
        sent[start : start + values.nbytes]
        .view(torch.from_numpy(np.empty(0, values.dtype)).dtype)
        .view(values.shape)
        for start, values in zip(_starts(arrays), arrays, strict=False)
    ]


def _starts(arrays: list[np.ndarray]) -> list[int]:
    """Where each begins, and where the last one ends."""
    starts = [0]
    for values in arrays:
        starts.append(starts[-1] + -(-values.nbytes // WORD) * WORD)
    return starts
