"""When a training saves its state, and that all workers do so after the same update."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

from kdfm_ray.checkpoints import Checkpoints
from kdfm_ray.config import FaultConfig
from kdfm_ray.training.runtime import Runtime, Wish
from kdfm_ray.training.state import State
from kdfm_ray.types import UserError

AGREE_SECONDS = 1.0  # between questions to the other workers, in updates of about that much time
AGREE_UPDATES = 1000  # at most
WARNED_SECONDS = 15.0  # between saves once a machine is about to go


class Saver:
    """Saves the state of one training; used by all workers at once, written by rank 0.

    The copy is made between two updates, and a thread writes it while the training goes on.
    """

    def __init__(
        self, checkpoints: Checkpoints | None, faults: FaultConfig, runtime: Runtime, stage: str
    ) -> None:
        """Keep nothing where ``checkpoints`` is ``None``; wishes to stop are heard all the same."""
        self._checkpoints, self._faults = checkpoints, faults
        self._runtime, self._stage = runtime, stage
        self._thread = ThreadPoolExecutor(1, "kdfm-save")
        self._writing: Future[None] | None = None
        self._last_saved: int | None = None
        self._saved_at = self._asked_at = time.monotonic()
        self._asked_step: int | None = None
        self._ask_next = 0
        self.warnings: list[str] = []  # for the report, on rank 0
        self._warned = False  # that this machine goes

    def resume(self) -> State | None:
        """The newest state that is whole, the same on all workers; ``None`` to begin anew.

        Raises:
            UserError: there are states, and none that can be gone on with.
        """
        if self._checkpoints is None:
            return None
        step, problem = -1, None
        if self._runtime.rank == 0:
            try:
                with self._checkpoints.latest() as found:
                    if found is not None:
                        step = found.step
                        for damage in found.damaged:
                            self._say(
                                f"a saved state is damaged ({damage}): going on from the one "
                                f"before, after update {step}"
                            )
            except UserError as error:
                problem = error
        step, failed = self._runtime.largest([step, int(problem is not None)])
        if problem is not None:
            raise problem
        if failed:
            raise RuntimeError("rank 0 found no state to go on from")
        if step < 0:
            return None
        with self._checkpoints.latest(step) as found:
            assert found is not None, f"the state after update {step} is not seen by this worker"
            self._last_saved = step
            return State.read(found.path)

    def decide(self, done: int) -> Wish:
        """What to do after ``done`` updates; all workers get the same answer."""
        every = self._faults.save_every
        due = Wish.SAVE if every is not None and done % every == 0 else Wish.NONE
        if done < self._ask_next:
            return due
        now = time.monotonic()
        updates = done - (self._asked_step or 0)
        wish, waited = self._runtime.wish(updates), now - self._saved_at
        if wish == Wish.SAVE and self._warned and waited < WARNED_SECONDS:
            wish = Wish.NONE
        self._warned = self._warned or wish == Wish.SAVE
        if waited > 60 * self._faults.save_minutes:
            wish = max(wish, Wish.SAVE)
        wish_of_all, stride = self._runtime.largest([int(wish), self._stride(done, now)])
        self._asked_at, self._asked_step, self._ask_next = now, done, done + stride
        return max(due, Wish(wish_of_all))

    def save(self, state: State | None, *, wait: bool = False) -> None:
        """Write a state (``None`` on other workers than rank 0).

        A state that cannot be written costs a warning, not the training: the one before stays.
        """
        self._saved_at = time.monotonic()
        if state is None or self._checkpoints is None:
            return
        self.finish()
        self._writing = self._thread.submit(self._write, state)
        if wait:
            self.finish()

    def finish(self) -> None:
        """Wait for what is being written."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    @property
    def last_saved(self) -> int | None:
        """Finished updates of the newest state that was written; of rank 0."""
        return self._last_saved

    @property
    def place(self) -> str:
        """Where the states are."""
        return "" if self._checkpoints is None else self._checkpoints.root

    def _stride(self, done: int, now: float) -> int:
        """Updates of about ``AGREE_SECONDS``."""
        if self._asked_step is None:
            return 1
        seconds = (now - self._asked_at) / max(1, done - self._asked_step)
        return max(1, min(AGREE_UPDATES, int(AGREE_SECONDS / max(seconds, 1e-9))))

    def _write(self, state: State) -> None:
        assert self._checkpoints is not None
        if not state.is_finite():
            self._say(
                f"the weights after update {state.step} are not finite, so they are not saved; the "
                f"last good state, {self._last_good()}, stays"
            )
            return
        try:
            with self._checkpoints.writing(state.step) as folder:
                state.write(folder)
        except Exception as error:  # a full disk has many faces
            self._say(
                f"the state after update {state.step} could not be saved in {self.place} ({error}):"
                f" free some space; the last good state, {self._last_good()}, stays"
            )
            return
        self._last_saved = state.step

    def _last_good(self) -> str:
        return "none" if self._last_saved is None else f"after update {self._last_saved}"

    def _say(self, text: str) -> None:
        self.warnings.append(text)
        self._runtime.emit({"stage": self._stage, "warning": text})
