"""Strong views on a GPU as one CUDA graph: some hundred kernels that the host launches together.

Launched one by one, the kernels of small images keep a GPU waiting for its host: on an H100 strong
views came no faster than on two CPU cores (experiments/LOG.md). The first batch of a shape records
those of ``dense.dense_view``, later ones copy their images and numbers to where these kernels read,
and replay them. Written without a GPU at hand; ``tests/gpu`` compares the views with a CPU's.
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

    def __init__(
        self, function: Function, images: Tensor, numbers: Tensor, pool: Any = None
    ) -> None:
        """Record what ``function`` does with tensors like these, on their device.

        Args:
            function: of tensors alone, without looking at a value.
            images, numbers: what it takes.
            pool: of an earlier recording on the device, with which memory is shared: they are
                replayed one after the other.
        """
        self._images, self._numbers = images.clone(), numbers.clone()
        with torch.cuda.device(images.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            self._graph = torch.cuda.CUDAGraph()
            # The outer context puts the stream back where a capture fails and its own does not.
            with torch.cuda.stream(side):
                function(self._images, self._numbers)  # libraries that start at their first use
                with torch.cuda.graph(
                    self._graph,
                    pool=pool,
                    stream=side,
                    # Another thread (NCCL's, a reader that pins memory) may go on meanwhile.
                    capture_error_mode="thread_local",
                ):
                    self._views = function(self._images, self._numbers)
            torch.cuda.current_stream().wait_stream(side)
        self.pool = self._graph.pool()

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
        return sum(one is not None for one in self._known.values())

    def view(self, images: Tensor, params: StrongParams) -> Tensor | None:
        """The strong views, or ``None`` where another way is faster or recording has failed."""
        rows = -(-len(images) // STEP) * STEP
        if self.failed or rows == 0 or rows * images[0].numel() > MANY_VALUES:
            return None
        if torch.are_deterministic_algorithms_enabled():  # which may copy from the host
            return None
        size = (images.shape[2], images.shape[3])
        layout = lay_out(params, size, rows)
        numbers = pack(list(layout), pin=self._pin)
        key = (images.device, rows, *images.shape[1:], params.op.shape[1])
        if key not in self._known:
            try:
                self._known[key] = self._recorded(images, rows, layout)
            except torch.OutOfMemoryError:
                self._known[key] = None
            except RuntimeError as error:
                self.failed = True
                cause = error.__context__ or error  # "capture invalidated", and what did so
                warnings.warn(
                    "strong views are made kernel by kernel, which is slower: this GPU records no "
                    f"CUDA graph of them ({cause})",
                    stacklevel=2,
                )
        recording = self._known.get(key)
        return None if recording is None else recording(images, numbers)

    def forget(self) -> None:
        """Give back the memory of all recordings."""
        for device in {key[0] for key in self._known if key[0].type == "cuda"}:
            torch.cuda.synchronize(device)  # one may be replayed at this moment
        self._known.clear()

    def _recorded(self, images: Tensor, rows: int, layout: Numbers) -> Any:
        arrays = list(layout)

        def function(batch: Tensor, numbers: Tensor) -> Tensor:
            return dense_view(batch, unpack(numbers, arrays, batch.device))

        like = images.new_zeros((rows, *images.shape[1:]))
        numbers = pack(arrays, pin=False).to(images.device)
        of_device = (one for key, one in self._known.items() if key[0] == images.device)
        pool = next((one.pool for one in of_device if one is not None), None)
        return self._record(function, like, numbers, pool)


recordings = Recordings()
