"""Random streams without state: every draw is a function of (seed, step, stream name).

A resumed run asks for step 700 and gets what the uninterrupted run had there; no sampler is saved.
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Int64

from kdfm_ray.types import UserError


def rng(seed: int, step: int, stream: str) -> np.random.Generator:
    """A fresh generator for one (seed, step, stream).

    Philox is keyed with the first 128 bits of BLAKE2b over ``"seed/step/stream"``, its counter at
    zero. Different triples are independent streams; equal ones repeat each other on any platform.

    Args:
        seed: any integer.
        step: any integer; what it counts (updates, epochs, classes) is the stream's own business.
        stream: name of the purpose, such as ``"labeled/order"``.
    """
    text = f"{int(seed)}/{int(step)}/{stream}"
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def permutation(n: int, seed: int, step: int, stream: str) -> Int64[np.ndarray, " n"]:
    """A permutation of 0..n-1 for one (seed, step, stream).

    NumPy promises the raw output of a bit generator for good, but not what ``permutation`` makes of
    it. So the raw 64-bit numbers are sorted: splits and orders outlive a new NumPy.
    """
    raw = rng(seed, step, stream).bit_generator.random_raw(n)
    return np.argsort(np.asarray(raw, dtype=np.uint64), kind="stable").astype(np.int64, copy=False)


class IndexStream:
    """Endless positions into a set: one random permutation after another, cut into batches.

    Each position occurs exactly once an epoch; a batch may straddle epochs and may be larger than
    the set. Any step can be asked for at any time, at the cost of the permutations it touches
    (the last ones are kept).

    Args:
        size: number of images in the set.
        batch: global batch size.
        seed: seed of the run.
        stream: name; two streams of one seed are independent.
    """

    def __init__(self, size: int, batch: int, *, seed: int, stream: str) -> None:
        if size < 1 or batch < 1:
            raise ValueError(f"an index stream needs size and batch >= 1, got {size} and {batch}")
        self.size = size
        self.batch = batch
        self.seed = seed
        self.stream = stream
        self._epochs: dict[int, np.ndarray] = {}

    def at(self, step: int) -> Int64[np.ndarray, " batch"]:
        """Positions of batch ``step`` (from 0): int64 ``[batch]`` in 0..size-1, a fresh array."""
        if step < 0:
            raise ValueError(f"steps count from 0, got {step}")
        parts = []
        position, end = step * self.batch, (step + 1) * self.batch
        while position < end:
            epoch, offset = divmod(position, self.size)
            taken = min(self.size - offset, end - position)
            parts.append(self._epoch(epoch)[offset : offset + taken])
            position += taken
        return np.concatenate(parts)

    def _epoch(self, epoch: int) -> np.ndarray:
        order = self._epochs.get(epoch)
        if order is None:
            order = permutation(self.size, self.seed, epoch, self.stream)
            # Replaced, not mutated: a prefetching thread may be reading. Two, for the straddle.
            last = list(self._epochs.items())[-1:]
            self._epochs = dict([*last, (epoch, order)])
        return order


def worker_slice(n: int, rank: int, world: int) -> slice:
    """The part of a global batch of ``n`` that worker ``rank`` of ``world`` computes.

    The slices are contiguous, in rank order, cover the batch, and differ in size by at most one.

    Raises:
        UserError: more workers than images, so that some would have nothing to do.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank must be in 0..{world - 1} (world size {world}), got {rank}")
    if world > n:
        raise UserError(
            f"{world} workers cannot share a global batch of {n} images: each needs at least one. "
            f"Use at most {n} workers, or a larger batch."
        )
    share, longer = divmod(n, world)
    start = rank * share + min(rank, longer)
    return slice(start, start + share + (rank < longer))
