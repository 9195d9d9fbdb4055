"""Start or join a Ray cluster, run tasks on it, and bring their progress to the driver.

Ray reads some environment variables while it is imported, so this module imports it only inside
functions, after ``prepare_environment``.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import platform
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kdfm_ray.config import ScaleConfig
from kdfm_ray.jobs.room import Need, Node, Room, room_at_most, room_now, wait_for_room
from kdfm_ray.jobs.watch import watching_ray
from kdfm_ray.types import Emit, Event, RunFailed, UserError

T = TypeVar("T")
POLL_SECONDS = 0.25  # between looks at the progress of remote work
LOOK_SECONDS = 5.0  # between looks whether there is a node for it
# With 0, read while Ray is imported, all ports of a Ray that is started here are on loopback.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def _nothing() -> None:
    """Events of this process arrive at once."""


@dataclass(frozen=True)
class Session:
    """What a run computes on.

    Attributes:
        in_process: no Ray processes at all; everything runs in the driver, to debug.
        room: nodes of the cluster, those included that its autoscaler may start; without GPUs where
            they are not to be used.
        emit: takes progress events, from any process.
        scale: how the run is divided.
        verbose: let Ray's own logs through.
        drain: has all events arrive that were sent so far.
        may_grow: nodes may come that are not there yet: a cluster that was joined.
        wait_minutes: how long a stage waits for them.
        keeps_workers: training workers stay between the stages of a run, as nobody else waits for
            what they hold: a local Ray of our own, on CPUs. Other stages then ask for no CPUs,
            and use those of the workers, which wait.
    """

    in_process: bool
    room: Room
    emit: Emit
    scale: ScaleConfig
    verbose: bool = False
    drain: Callable[[], None] = _nothing
    may_grow: bool = False
    wait_minutes: float = 30.0
    keeps_workers: bool = False

    @property
    def use_gpu(self) -> bool:
        """Whether stages ask for GPUs."""
        return self.room.gpus > 0

    @property
    def cpus_per_worker(self) -> int:
        """CPUs (and torch threads) of one training worker or labeling actor."""
        if self.scale.cpus_per_worker is not None:
            return self.scale.cpus_per_worker
        workers = max(1, self.scale.num_workers)
        if self.use_gpu:  # where more of them are to come, their nodes will be like these
            return self.room.share(min(workers, self.room.gpus), gpus=1)
        return self.room.share(workers)

    @property
    def workers_need(self) -> Need:
        """What has to be there for training to begin."""
        workers = self.scale.min_workers or self.scale.num_workers
        return _need(workers, cpus=self.cpus_per_worker, gpu=self.use_gpu)

    @property
    def actor_need(self) -> Need:
        """What has to be there for one process that computes, as a labeling actor does."""
        return _need(1, cpus=max(1, self.cpus_to_ask(self.cpus_per_worker)), gpu=self.use_gpu)

    def wait_for(self, need: Need) -> None:
        """Wait until nodes have room for ``need``, where nodes may come; say so meanwhile.

        Raises:
            RunFailed: there is none after ``wait_minutes``.
        """
        if self.may_grow:
            wait_for_room(need, self.emit, minutes=self.wait_minutes)

    def watching(self, need: Need, work: Callable[[], T]) -> T:
        """Do ``work`` in a thread, and wait for nodes whenever there is no room for ``need``.

        Ray itself would wait without a word, and without end, for nodes that went meanwhile.
        """
        if not self.may_grow:
            return work()
        self.wait_for(need)
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(work())
            except BaseException as error:
                result.set_exception(error)

        threading.Thread(target=run, name="kdfm-work", daemon=True).start()
        while not wait([result], timeout=LOOK_SECONDS).done:
            self.wait_for(need)
        return result.result()

    def cpus_to_ask(self, cpus: int) -> int:
        """What a task or actor beside the training workers asks for to have ``cpus`` CPUs."""
        return 0 if self.keeps_workers else cpus

    def call(self, function: Callable[..., T], *args: Any, gpu: bool = False) -> T:
        """Run a function as one Ray task (here, where the session has no Ray).

        Args:
            function: importable by name on every node; takes ``args``.
            args: picklable.
            gpu: whether it computes; it then asks for a GPU where the cluster has one, else for
                all CPUs of a worker.

        The function's module is imported here too: it should import what it computes with when
        it is called, as the driver of a cluster computes nothing.
        """
        if self.in_process:
            return function(*args)
        import ray
        from ray.exceptions import RayTaskError

        gpus = 1 if gpu and self.use_gpu else 0
        cpus = self.cpus_to_ask(self.cpus_per_worker if gpu and not gpus else 1)
        # Not by .options(): a task that is declared to need a GPU ends its process, and with it
        # what torch keeps of the GPU's memory.
        # "DEFAULT": in the trial of a sweep tasks would else share what Tune reserved for it.
        task = ray.remote(
            num_cpus=cpus, num_gpus=gpus, max_retries=2, scheduling_strategy="DEFAULT"
        )(function)
        need = self.actor_need if gpu else Need(1, cpus=1)
        self.wait_for(need)
        running = task.remote(*args)
        while not ray.wait([running], timeout=LOOK_SECONDS)[0]:
            self.wait_for(need)  # nodes may go while it runs
        try:
            return ray.get(running)
        except RayTaskError as error:
            raise error.cause from error

    def each(self, function: Callable[..., T], items: Sequence[tuple[Any, ...]]) -> Iterator[T]:
        """Run a function once for the arguments of each item, as Ray tasks of one CPU each.

        As many run at a time as the cluster has CPUs; a task whose process or node dies is run
        again.

        Args:
            function: importable by name on every node.
            items: arguments, picklable.

        Yields:
            Results, in the order in which they come.
        """
        if self.in_process:
            for item in items:
                yield function(*item)
            return
        import ray
        from ray.exceptions import RayTaskError

        task = ray.remote(
            num_cpus=self.cpus_to_ask(1), max_retries=3, scheduling_strategy="SPREAD"
        )(function)
        waiting = list(reversed(items))
        running: set[Any] = set()
        try:
            while waiting or running:
                self.wait_for(Need(1, cpus=1))
                while waiting and len(running) < max(1, self.room.cpus):
                    running.add(task.remote(*waiting.pop()))
                done, rest = ray.wait(list(running), num_returns=1, timeout=LOOK_SECONDS)
                running = set(rest)
                yield from ray.get(done)
        except RayTaskError as error:
            raise error.cause from error
        finally:
            for reference in running:
                ray.cancel(reference)


@contextlib.contextmanager
def open_session(
    scale: ScaleConfig,
    emit: Emit,
    *,
    wait_minutes: float = 30,
    verbose: bool = False,
    dashboard: bool = False,
) -> Iterator[Session]:
    """Join the cluster of ``RAY_ADDRESS``, or start one on this machine that ends with the block.

    A cluster that is started here listens on loopback only and is quiet; one that is joined is
    left as it is.

    Args:
        scale: how the run is divided; with no workers there is no Ray.
        emit: takes progress events of all processes.
        wait_minutes: how long to wait for the first node that computes, where a cluster has none.
        verbose: let Ray's own logs through.
        dashboard: start Ray's dashboard too, whose State API Ray Train asks when it looks after
            what a trial held that was stopped.
    """
    joining = bool(os.environ.get("RAY_ADDRESS"))
    if not _in_ray_worker():
        prepare_environment(local=not joining, verbose=verbose)
    if scale.num_workers == 0:
        room = _usable(_this_process(), scale)
        yield Session(in_process=True, room=room, emit=emit, scale=scale, verbose=verbose)
        return
    import ray
    from ray.exceptions import RayError

    ours = not ray.is_initialized()
    if not ours:
        gc.collect()  # a cycle in Ray Data keeps the actors of a failed job, and they hold CPUs
    hushed = contextlib.ExitStack()
    if ours:
        if not verbose:
            hushed.enter_context(_hushed_raylets())
        _init(joining=joining, verbose=verbose, dashboard=dashboard)
    try:
        with _events(emit) as (remote_emit, drain):
            may_grow = joining or not _is_this_process_the_head()
            most = room_at_most() if may_grow else room_now()
            if most is not None:
                _check_fits(scale, most)
            if may_grow:
                _wait_for_first(scale, most, emit, wait_minutes)
            room = _usable(most or room_now(), scale)
            session = Session(
                in_process=False,
                room=room,
                emit=remote_emit,
                scale=scale,
                verbose=verbose,
                drain=drain,
                may_grow=may_grow,
                wait_minutes=wait_minutes,
                keeps_workers=ours and not joining and room.gpus == 0,
            )
            with watching_ray():
                yield session
    except RayError as error:
        cause = _innermost(error)
        if isinstance(cause, UserError | RunFailed):
            raise cause from error
        raise goes_on_later(cause) from error
    finally:
        if ours:
            ray.shutdown()
        hushed.close()


def _innermost(error: BaseException) -> BaseException:
    """What a task raised: Ray wraps it, and Ray Data wraps that."""
    inner = getattr(error, "cause", None) or error.__cause__
    return _innermost(inner) if isinstance(inner, BaseException) and str(inner) else error


def goes_on_later(error: BaseException) -> RunFailed:
    """What to tell of an error that no setting is to blame for."""
    return RunFailed(
        f"{_in_a_line(error)}. What is finished or saved stays in the store, and the same "
        "command goes on from it"
    )


def _in_a_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any(line.startswith("File ") for line in lines):
        return lines[-1]  # of a traceback
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def prepare_environment(*, local: bool, verbose: bool = False) -> None:
    """Settings that Ray reads from the environment, none of which replaces the user's own."""
    settings = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # fit() polls; the default 2 s costs seconds
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the future default; says so in a warning
    }
    if not verbose:
        settings["RAY_BACKEND_LOG_LEVEL"] = "fatal"  # of Ray's core: notes on restarts and the like
    if local:
        if "ray" in sys.modules and LOOPBACK not in os.environ:
            warnings.warn(
                "ray was imported before kdfm_ray could set its environment, so the ports of a "
                f"local Ray may listen on all interfaces: set {LOOPBACK}=0 before importing ray",
                stacklevel=3,
            )
        settings[LOOPBACK] = "0"
        settings["GLOO_SOCKET_IFNAME"] = "lo"
        # A process that has imported torch serves the next stage too: do not end it when idle.
        settings["RAY_idle_worker_killing_time_threshold_ms"] = "600000"
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def quiet_libraries(session: Session) -> None:
    """Stop Ray's libraries from logging each job; errors still reach the user as exceptions.

    They set their own levels when they are imported, so this comes after.
    """
    if session.verbose:
        return
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def prepare_data_job(session: Session) -> Any:
    """Ray Data's settings for a job of ours, to be set before its data set is made; they are
    returned.

    What a worker raises arrives as it was raised: Ray Data would wrap it, and of what is wrapped
    only a text survives the way to the driver.
    """
    import ray.data

    quiet_libraries(session)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the live view has its own
    context.max_errored_blocks = 0  # a lost block would be lost labels
    context.raise_original_map_exception = True
    return context


def _init(*, joining: bool, verbose: bool, dashboard: bool) -> None:
    import ray

    quiet = {} if verbose else {"log_to_driver": False, "logging_level": "error"}
    if joining:
        address = os.environ["RAY_ADDRESS"]
        try:
            _check_reachable(address)
            with contextlib.nullcontext() if verbose else _without_line("Set ray log level"):
                ray.init(address=address, **quiet)
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot join the Ray cluster at RAY_ADDRESS={address}: {error}. Start that "
                "cluster, correct the address, or unset RAY_ADDRESS to use this machine alone"
            ) from error
        return
    with contextlib.nullcontext() if verbose else _without_line("Set ray log level"):
        # "local": never a cluster that somebody else runs on this machine.
        ray.init(address="local", include_dashboard=dashboard, **quiet)
    # Ray makes a token for those who may use it, and lets everybody on this machine read it.
    token = Path("~/.ray/auth_token").expanduser()
    with contextlib.suppress(OSError):
        token.chmod(0o600)


@contextlib.contextmanager
def _hushed_raylets() -> Iterator[None]:
    """Keep what nodes say of processes that died out of the live view, which has its own words."""
    import ray._private.worker as worker

    before = getattr(worker, "print_to_stdstream", None)

    def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    if before is not None:
        worker.print_to_stdstream = nothing
    try:
        yield
    finally:
        if before is not None:
            worker.print_to_stdstream = before


@contextlib.contextmanager
def _without_line(text: str) -> Iterator[None]:
    """Hold back what is written to standard error, and pass it on without lines with ``text``.

    Ray's core, told by its environment to be quiet, says so from C++, amid the progress bars.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            lines = held.read().decode(errors="replace").splitlines(keepends=True)
            sys.stderr.write("".join(line for line in lines if text not in line))


def _check_reachable(address: str) -> None:
    """Fail within seconds where nobody listens: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        with socket.create_connection((host, int(port)), timeout=10):
            pass


@contextlib.contextmanager
def _events(emit: Emit) -> Iterator[tuple[Emit, Callable[[], None]]]:
    """Events that any process of the cluster emits arrive at ``emit`` in the driver.

    Yields:
        What those processes emit to, and a function that has all events arrive that were sent.
    """
    import ray
    from ray.exceptions import RayError

    mailbox = start_beside_driver(Mailbox)
    stop = threading.Event()

    lock = threading.Lock()

    def drain() -> None:
        with lock:
            for event in ray.get(mailbox.take.remote()):
                emit(event)

    def pump() -> None:
        while not stop.wait(POLL_SECONDS):
            try:
                drain()
            except RayError:  # Ray is gone: whoever waits for its work says so
                return

    thread = threading.Thread(target=pump, name="kdfm-events", daemon=True)
    thread.start()
    try:
        yield Post(mailbox), drain
    finally:
        stop.set()
        thread.join(timeout=10)
        with contextlib.suppress(Exception):
            ray.kill(mailbox)


def start_beside_driver(kind: type) -> Any:
    """An actor without arguments on the driver's node: nodes that go away take nothing with them.

    Args:
        kind: its class.

    Returns:
        The handle.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(kind).options(num_cpus=0, scheduling_strategy=here).remote()


class Mailbox:
    """The actor that holds events until the driver takes them."""

    def __init__(self) -> None:
        """Start empty."""
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)

    def take(self) -> list[Event]:
        """All events since the last call."""
        events, self._events = self._events, []
        return events


class Post:
    """An ``Emit`` that can be sent to any process of the cluster."""

    def __init__(self, mailbox: Any) -> None:
        """Post to the ``Mailbox`` actor behind the handle."""
        self._mailbox = mailbox

    def __call__(self, event: Event) -> None:
        """Send without waiting."""
        self._mailbox.put.remote(event)


def cpu_name() -> str:
    """The processor as the system calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _in_ray_worker() -> bool:
    """Whether this process was started by Ray, as that of a task or of a trial in a sweep."""
    ray = sys.modules.get("ray")
    return ray is not None and ray._private.worker.global_worker.mode == ray.WORKER_MODE


def _is_this_process_the_head() -> bool:
    """Whether Ray was started in this process, and not joined: nobody adds nodes to it."""
    import ray

    node = ray._private.worker._global_node
    return node is not None and bool(node.is_head())


def _this_process() -> Room:
    import torch

    return Room((Node(os.cpu_count() or 1, torch.cuda.device_count()),))


def _usable(room: Room, scale: ScaleConfig) -> Room:
    if scale.use_gpu == "yes" and room.gpus == 0:
        raise UserError(
            "scale.use_gpu = yes, but there is no GPU here: start on a machine (or cluster) with "
            "one, or use scale.use_gpu auto or no"
        )
    return room.without_gpus() if scale.use_gpu == "no" else room


def _need(workers: int, *, cpus: int, gpu: bool) -> Need:
    """Training workers on GPUs ask Ray for one CPU, whatever number of threads they have."""
    return Need(workers, cpus=1, gpus=1) if gpu else Need(workers, cpus)


def _wait_for_first(scale: ScaleConfig, most: Room | None, emit: Emit, minutes: float) -> None:
    """A place for one worker: any stage needs that much, and its node tells of the others."""
    gpu = scale.use_gpu == "yes" or bool(scale.use_gpu == "auto" and most and most.gpus)
    need = _need(1, cpus=scale.cpus_per_worker or 1, gpu=gpu)
    wait_for_room(need, emit, minutes=minutes)


def _check_fits(scale: ScaleConfig, most: Room) -> None:
    """Refuse what this cluster will never have room for."""
    room = _usable(most, scale)
    workers = scale.min_workers or scale.num_workers
    if room.gpus:
        if workers > room.gpus:
            raise UserError(
                f"{workers} training workers need as many GPUs, the cluster has {room.gpus}: "
                "use fewer workers, or scale.use_gpu no"
            )
        return
    each = scale.cpus_per_worker or room.share(max(1, scale.num_workers))
    if each > room.node_cpus:
        raise UserError(
            f"scale.cpus_per_worker = {each} is more than the {room.node_cpus} CPUs of the "
            "largest node: use fewer"
        )
    if room.places(each) < workers:
        raise UserError(
            f"{workers} training workers x {each} CPUs = {workers * each}, the cluster has "
            f"{room.cpus} on {len(room.nodes)} node(s), with room for {room.places(each)} such "
            "workers: use no more, or fewer CPUs each"
        )
