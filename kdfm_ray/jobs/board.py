"""What training workers do between their start and their end: pieces of work from a board.

A piece is a list of networks to train, or a call of a function. The driver puts one after the
other on the board, an actor; see ``crew``.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdfm_ray.models.numerics import Numerics
from kdfm_ray.store import Store
from kdfm_ray.types import Role, RunFailed, Stopped, UserError

if TYPE_CHECKING:
    from kdfm_ray.config import Config
    from kdfm_ray.training.runtime import Runtime, Wish

POLL_SECONDS = 0.1  # between a waiting worker's looks at the board
PREEMPTION_CALLS = 5  # at each so many questions for wishes (one a second) Ray is asked, too


@dataclass(frozen=True)
class TrainTask:
    """One network to train, as keys: a worker on any node finds the rest in the store.

    Attributes:
        role: which network.
        key: where the result goes.
        dataset, split: what it is trained on.
        numerics: as resolved, the same on all workers.
        trusted: the trusted subset, for the inner network.
        outer: the outer network, where the inner one starts from its weights.
    """

    role: Role
    key: str
    dataset: str
    split: str
    numerics: Numerics
    trusted: str | None = None
    outer: str | None = None


@dataclass(frozen=True)
class Call:
    """A function for workers that are there, instead of a process of its own.

    Attributes:
        function: importable by name; what it raises is raised in the driver.
        args: its arguments, picklable.
        by_all: every worker calls it, with ``rank`` and ``world_size`` too; else worker 0 alone.
            It may be called again after workers have died.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    by_all: bool = False


@dataclass(frozen=True)
class Part:
    """What one of the ``world_size`` workers that share a call found, or why it did not."""

    rank: int
    world_size: int
    found: Any = None
    error: Exception | None = None


class Board:
    """The actor where the driver puts pieces of work, and workers look for them."""

    def __init__(self) -> None:
        """Start empty."""
        self._pieces: list[list[TrainTask] | Call] = []
        self._done = 0
        self._parts: list[Part] = []  # of the piece that is being done
        self._closed = False
        self._to_stop = False
        self._heard = time.monotonic()  # of a worker
        self._ended: BaseException | None = None

    def give(self, piece: list[TrainTask] | Call) -> None:
        """Add a piece for all workers."""
        self._pieces.append(piece)
        self._parts = []

    def close(self) -> None:
        """There will be no more."""
        self._closed = True

    def ask_to_stop(self) -> None:
        """Workers save their state after the next update and end."""
        self._to_stop = True

    def silence(self) -> float:
        """Seconds since a worker has asked for anything."""
        return time.monotonic() - self._heard

    def is_to_stop(self) -> bool:
        """Whether they should."""
        self._heard = time.monotonic()
        return self._to_stop

    def end(self, why: BaseException) -> None:
        """A worker ended for a reason that would not be another when it is started again."""
        self._ended = self._ended or why

    def why_ended(self) -> BaseException | None:
        """That reason, if there is one."""
        return self._ended

    def look(self, number: int) -> tuple[list[TrainTask] | Call | None, bool]:
        """Piece ``number`` (from 0) if it is there, and whether it may yet come."""
        self._heard = time.monotonic()
        if number < len(self._pieces):
            return self._pieces[number], True
        return None, not self._closed

    def note_done(self, number: int) -> None:
        """Piece ``number`` is done."""
        self._done = max(self._done, number + 1)

    def note_part(self, number: int, part: Part) -> None:
        """A worker's part of call ``number`` is done, or cannot be.

        The call is when all parts are. Parts of workers that have died since count where as many
        were started again, as each of them would do the same part.
        """
        if number != len(self._pieces) - 1:
            return
        others = [
            other
            for other in self._parts
            if other.world_size == part.world_size and other.rank != part.rank
        ]
        self._parts = sorted([*others, part], key=lambda part: part.rank)
        if len(self._parts) == part.world_size or part.error is not None:
            self.note_done(number)

    def count_done(self) -> int:
        """How many pieces are."""
        return self._done

    def outcome(self) -> tuple[Exception | None, list[Any]]:
        """Of the last call: the error of a worker, if there is one; what all found, by rank."""
        errors = [part.error for part in self._parts if part.error is not None]
        return errors[0] if errors else None, [part.found for part in self._parts]


def work(loop_config: dict[str, Any]) -> None:
    """The function that Ray Train runs on each worker: one piece of work after the other."""
    import ray
    import ray.train
    import ray.train.torch

    from kdfm_ray.training.runtime import Runtime, give_back_memory, ignore, keep_freed_memory

    board = loop_config["board"]
    if ray.get(board.why_ended.remote()) is not None:  # started again for nothing
        return
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        keep_freed_memory()
    context = ray.train.get_context()
    rank = context.get_world_rank()
    runtime = Runtime(
        rank=rank,
        world_size=context.get_world_size(),
        device=device,
        emit=loop_config["emit"] if rank == 0 else ignore,
        wish=_Wishes(board, rank),
    )
    store, config = Store(loop_config["store"]), loop_config["config"]
    number = ray.get(board.count_done.remote())
    while True:
        piece, may_come = ray.get(board.look.remote(number))
        if isinstance(piece, Call):
            _call(piece, number, board, runtime)
        elif piece is not None:
            if not _train(piece, number, board, runtime, config, store, loop_config["threads"]):
                return
        elif may_come:
            time.sleep(POLL_SECONDS)
            continue
        else:
            return
        number += 1
        give_back_memory()


def _train(
    tasks: list[TrainTask],
    number: int,
    board: Any,
    runtime: Runtime,
    config: Config,
    store: Store,
    threads: int,
) -> bool:
    """Train all of a list; whether to go on after it."""
    import ray

    from kdfm_ray.jobs.train import train_tasks

    try:
        train_tasks(tasks, config, store, runtime, threads=threads)
    except (Stopped, UserError, FloatingPointError) as why:
        if runtime.rank == 0 or isinstance(why, UserError):
            ray.get(board.end.remote(why))
        if isinstance(why, UserError) and runtime.world_size > 1:
            raise  # the others may wait for this worker: Ray ends them
        return False
    if runtime.rank == 0:
        ray.get(board.note_done.remote(number))
    return True


def _call(call: Call, number: int, board: Any, runtime: Runtime) -> None:
    """Do this worker's part of a call, if it has one."""
    import ray

    rank, world_size = (runtime.rank, runtime.world_size) if call.by_all else (0, 1)
    if rank != runtime.rank:
        return
    ranks = {"rank": rank, "world_size": world_size} if call.by_all else {}
    try:
        part = Part(rank, world_size, call.function(*call.args, **ranks))
    except Exception as error:  # the driver's to handle
        if not isinstance(error, UserError | RunFailed):  # whose text says it all
            error.add_note(f"In training worker {rank}:\n{traceback.format_exc()}")
        part = Part(rank, world_size, error=error)
    ray.get(board.note_part.remote(number, part))


class _Wishes:
    """What the user and the cluster want of a worker, for ``Runtime.wish``.

    Ray answers the question after machines that will be taken away to all workers together, so
    each of them asks at the same calls.
    """

    def __init__(self, board: Any, rank: int) -> None:
        self._board, self._rank, self._calls = board, rank, 0
        self._machine_goes = False

    def __call__(self, updates: int) -> Wish:
        import ray
        import ray.train

        from kdfm_ray.training.runtime import Wish

        if updates == 1 or self._calls % PREEMPTION_CALLS == 0:
            self._machine_goes = ray.train.get_preemption_info() is not None
        self._calls += 1
        if self._rank == 0 and ray.get(self._board.is_to_stop.remote()):
            return Wish.STOP
        return Wish.SAVE if self._machine_goes else Wish.NONE
