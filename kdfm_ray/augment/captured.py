"""Strong views on a GPU as one CUDA graph: some hundred kernels that the host launches together.

Launched one by one, the kernels of a batch of small images take ten times as long as they compute
(experiments/LOG.md, the first GPU). The first batch of a shape records those of
``dense.dense_view``, later ones copy their images and numbers to where these kernels read, and
replay them. Written without a GPU at hand; ``tests/gpu`` compares the views with a CPU's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdfm_ray.augment.dense import Numbers, dense_view, lay_out
from kdfm_ray.augment.params import StrongParams
from kdfm_ray.augment.parcel import pack, unpack

# Values of a batch from which its kernels compute longer than they take to launch: an estimate.
MANY_VALUES = 1 << 22
STEP = 64  # batches of any number of images share a recording of the next multiple

Function = Callable[[Tensor, Tensor], Tensor]  # images and the bytes of their numbers -> views


class Recording:
    """The kernels of a function, recorded on a GPU for tensors of one shape."""

    def __init__(self, function: Function, images: Tensor, numbers: Tensor) -> None:
        """Record what ``function`` does with tensors like these, on their device."""
        self._images, self._numbers = images.clone(), numbers.clone()
        with torch.cuda.device(images.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                function(self._images, self._numbers)  # libraries that start at their first use
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            # Another thread (NCCL's, a reader that pins memory) may go on meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._views = function(self._images, self._numbers)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Views of the first images; ``numbers`` in pinned memory, for all of the recorded ones."""
        self._images[: len(images)].copy_(images)
        self._numbers.copy_(numbers, non_blocking=True)
        with torch.cuda.device(images.device):
            self._graph.replay()
        return self._views[: len(images)].clone()


class Recordings:
    """Those of this process, one for each shape of batches and number of operations."""

    def __init__(self, record: Callable[..., Any] = Recording, *, pin: bool = True) -> None:
        """Nothing is recorded yet.

        Args:
            record: makes a recording.
            pin: whether numbers are put in pinned memory.
        """
        self._record, self._pin = record, pin
        self._known: dict[tuple[Any, ...], Any] = {}
        self.failed = False

    def __len__(self) -> int:
        """How many shapes are recorded."""
        return len(self._known)

    def view(self, images: Tensor, params: StrongParams) -> Tensor | None:
        """The strong views, or ``None`` where another way is faster or recording has failed."""
        if self.failed or len(images) == 0 or images.numel() > MANY_VALUES:
            return None
        rows = -(-len(images) // STEP) * STEP
        size = (images.shape[2], images.shape[3])
        layout = lay_out(params, size, rows)
        numbers = pack(list(layout), pin=self._pin)
        key = (images.device, rows, *images.shape[1:], params.op.shape[1])
        if key not in self._known:
            try:
                self._known[key] = self._recorded(images, rows, layout)
            except RuntimeError as error:
                self.failed = True
                warnings.warn(
                    "strong views are made kernel by kernel, which is slower: this GPU records no "
                    f"CUDA graph of them ({error})",
                    stacklevel=2,
                )
                return None
        views: Tensor = self._known[key](images, numbers)
        return views

    def forget(self) -> None:
        """Give back the memory of all recordings."""
        self._known.clear()

    def _recorded(self, images: Tensor, rows: int, layout: Numbers) -> Any:
        arrays = list(layout)

        def function(batch: Tensor, numbers: Tensor) -> Tensor:
            return dense_view(batch, unpack(numbers, arrays, batch.device))

        like = images.new_zeros((rows, *images.shape[1:]))
        return self._record(function, like, pack(arrays, pin=False).to(images.device))


recordings = Recordings()
